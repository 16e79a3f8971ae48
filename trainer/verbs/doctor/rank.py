"""The ranks of the doctor's all-reduce: `python -m trainer.verbs.doctor.rank ROLE DIR ACCELERATOR RANKS`.

ROLE is `start` in the process that starts RANKS others with torch.distributed.elastic, and `rank` in each of those,
as in those that torchrun or srun have started.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.config.schema import Config
from trainer.errors import EXIT_BUG, EXIT_DONE, RankFailure, UserError, counted
from trainer.faults.exit import end_with_parent, run_and_exit
from trainer.launch.agent import run_agent
from trainer.launch.discover import joined_world
from trainer.launch.error_file import record_error
from trainer.launch.network import LOOPBACK, LOOPBACK_BACKEND
from trainer.launch.process_group import process_group
from trainer.run.stored_config import read_stored_config
from trainer.verbs.doctor.all_reduce import GROUP_TIMEOUT_S
from trainer.world import World

NUM_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
REPEATS = 5
# Sums of such integers are exact in float32 on any number of ranks.
PERIOD = 97


def main() -> int:
    """Run the role. Returns: exit code."""
    role, folder, accelerator, ranks, *plugins = sys.argv[1:]
    if role == "start":
        return start(folder, accelerator, int(ranks), plugins)
    return be_rank(Path(folder), accelerator, plugins)


def start(folder: str, accelerator: str, ranks: int, plugins: Sequence[str]) -> int:
    """Start the ranks of this node and wait for them.

    Args: plugins: the override that names them, if there are any. Returns: exit code.
    """
    try:
        run_agent(
            ["-m", "trainer.verbs.doctor.rank", "rank", folder, accelerator, str(ranks), *plugins],
            None,
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=f"doctor-{os.getpid()}",
            rdzv_backend=LOOPBACK_BACKEND,
            max_restarts=0,
            local_addr=LOOPBACK,
        )
    except (RankFailure, UserError) as error:
        print(error, file=sys.stderr)
        return EXIT_BUG
    return EXIT_DONE


def be_rank(folder: Path, accelerator: Any, plugins: Sequence[str]) -> int:
    """Run one rank; rank 0 prints the measurement as a line of JSON. Returns: exit code."""
    end_with_parent(signal.SIGKILL)
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().initialize()
    try:
        config = read_stored_config(folder, plugins).config
        world = joined_world(accelerator, config.launch)
        assert world is not None, "started by torchrun, srun or elastic"
        if world.launcher == "torchrun" and os.environ["TORCHELASTIC_RUN_ID"].startswith("doctor-"):
            world = replace(world, launcher="elastic")
        result = measure(replace(config, launch=replace(config.launch, timeout_s=GROUP_TIMEOUT_S)), world)
    except Exception as error:  # noqa: BLE001 - the process that started the ranks reports the first failure
        record_error(error)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_BUG
    if world.rank == 0:
        print(json.dumps(result), flush=True)
    return EXIT_DONE


def measure(config: Config, world: World) -> dict[str, Any]:
    """Sum over the ranks, several times. Returns: backend, ranks, num_bytes, time_s. Raises: ArithmeticError: a sum is
    wrong on any rank.
    """
    import torch
    import torch.distributed as dist

    on_gpu = world.accelerator == "cuda"
    device = torch.device("cuda", world.gpu_index) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    times = []
    with process_group(config, world):
        ranks = dist.get_world_size()
        pattern = torch.arange(NUM_BYTES[device.type] // 4, device=device) % PERIOD
        wrong = torch.zeros(1, device=device)
        for _ in range(REPEATS):
            values = (pattern + world.rank).float()
            dist.barrier()
            start_s = _now(device)
            dist.all_reduce(values)
            times.append(_now(device) - start_s)
            wrong += (values != pattern * ranks + ranks * (ranks - 1) // 2).sum()
        dist.all_reduce(wrong)
        backend = dist.get_backend()
    if wrong.item():
        elements = counted(int(wrong.item()), "wrong element")
        raise ArithmeticError(f"{elements} in the sum of an all-reduce over {counted(ranks, 'rank')}")
    # The first one also opens connections.
    return {
        "backend": backend,
        "ranks": ranks,
        "num_bytes": pattern.numel() * 4,
        "time_s": statistics.median(times[1:]),
    }


def _now(device: Any) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    run_and_exit(main)
