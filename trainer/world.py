"""The ranks of a run: the contract between the launcher, which finds them, and all that depends on their number."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Launcher = Literal["single", "elastic", "torchrun", "slurm"]
Accelerator = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class World:
    """The ranks of a run. rank and local_rank are this process's own, 0 in a parent that has not started ranks yet.

    launcher: what starts the ranks; single is this process alone. accelerator: resolved, never "auto".
    """

    launcher: Launcher
    accelerator: Accelerator
    world_size: int
    local_world_size: int
    num_nodes: int
    rank: int = 0
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0

    @property
    def gpu_index(self) -> int:
        """This rank's GPU among those it sees; srun may have shown it only one."""
        return self.local_rank if num_visible_gpus() != 1 else 0

    @property
    def joined(self) -> bool:
        """Whether torchrun or srun has started this process as one of the ranks."""
        return self.launcher in ("torchrun", "slurm")


def num_visible_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """GPUs this process may use, found without loading torch."""
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not present:
        return present
    return min(present, len([part for part in chosen.split(",") if part.strip() and part.strip() != "-1"]))
