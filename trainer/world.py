"""The ranks of a run: the contract between the launcher, which finds them, and all that depends on their number."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.errors import counted

Launcher = Literal["single", "elastic", "torchrun", "slurm"]
Accelerator = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class World:
    """The ranks of a run. rank and local_rank are this process's own, 0 in a parent that has not started ranks yet.

    launcher: what starts the ranks; single is this process alone. accelerator: resolved, never "auto". resized: nodes
    were lost or have joined, so that their number is not the planned one and need not divide the batch.
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
    resized: bool = False

    def __str__(self) -> str:
        nodes = counted(self.num_nodes, "node")
        return f"{self.world_size} = {nodes} x {self.local_world_size}, {self.accelerator}"

    @property
    def gpu_index(self) -> int:
        """This rank's GPU among the visible ones: srun may have made only one visible to each rank."""
        return self.local_rank if num_visible_gpus() != 1 else 0

    @property
    def joined(self) -> bool:
        """Whether torchrun or srun has started this process as one of the ranks."""
        return self.launcher in ("torchrun", "slurm")


def num_visible_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """GPUs that this process may use, counted without torch: its import takes seconds."""
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not present:
        return present
    return min(present, len([part for part in chosen.split(",") if part.strip() and part.strip() != "-1"]))
