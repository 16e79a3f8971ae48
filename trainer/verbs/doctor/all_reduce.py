"""A real all-reduce over the ranks of a run, started as a run starts them. `rank.py` is the code of the ranks."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from trainer.config.identity import config_to_mapping
from trainer.config.schema import Config
from trainer.config.strategies import shards_state
from trainer.errors import EXIT_DONE, counted
from trainer.launch.network import interfaces
from trainer.launch.submit import submits
from trainer.run.stored_config import plugins_word
from trainer.verbs.doctor.child import run_child
from trainer.verbs.doctor.report import Finding
from trainer.world import World, num_visible_gpus

NAME = "all-reduce"
# Longest wait of a rank for its peers, which may start later: on a busy machine, or from a cold network file system.
GROUP_TIMEOUT_S = 60.0
# Longer, so that a rank that has waited too long can report for what.
STALL_S = GROUP_TIMEOUT_S + 15.0
CHOSEN_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check_all_reduce(config: Config, world: World) -> Iterator[Finding]:
    """The sum over all ranks is right, and how fast it is."""
    reason = _reason_to_skip(config, world)
    if reason is not None:
        yield Finding(NAME, "skipped", reason)
        return
    role = "rank" if world.joined else "start"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config_to_mapping(config)), encoding="utf-8")
        words = [role, folder, world.accelerator, str(world.local_world_size), *plugins_word(config.plugins)]
        child = run_child([sys.executable, "-m", "trainer.verbs.doctor.rank", *words], STALL_S)
    if child.code != EXIT_DONE:
        yield Finding(NAME, "failure", f"{_ranks(world)}: {child.error_line}", _remedy(world))
    elif world.rank == 0:
        yield _measured(world, json.loads(child.output.strip().splitlines()[-1]))


def bus_bandwidth_gb_per_s(num_bytes: int, time_s: float, ranks: int) -> float:
    """Bandwidth of each link in 1e9 bytes per second, comparable between numbers of ranks.

    A ring moves each element 2 (n - 1) times over n links, so it is 2 (n - 1) / n times bytes / time (nccl-tests,
    doc/PERFORMANCE.md).
    """
    return 2 * (ranks - 1) / ranks * num_bytes / time_s / 1e9


def _reason_to_skip(config: Config, world: World) -> str | None:
    if submits(config):
        return "the ranks are on the cluster: `srun python -m trainer doctor` without launch=slurm"
    ranks = world.world_size if world.joined else world.local_world_size
    if ranks == 1 and not shards_state(config.strategy):
        return "one rank: nothing to sum" if world.world_size == 1 else "one rank of this node: nothing to sum on it"
    if world.accelerator == "cuda" and world.local_world_size > num_visible_gpus():
        return f"{counted(world.local_world_size, 'GPU')} configured, {num_visible_gpus()} visible"
    return None


def _ranks(world: World) -> str:
    if world.joined:
        return f"{counted(world.world_size, 'rank')} on {counted(world.num_nodes, 'node')}"
    return f"{counted(world.local_world_size, 'rank')} of this node"


def _measured(world: World, result: dict[str, float]) -> Finding:
    ranks, num_bytes, time_s = int(result["ranks"]), int(result["num_bytes"]), result["time_s"]
    if ranks == 1:
        return Finding(NAME, "ok", f"a group of one rank, {result['backend']}")
    bandwidth = bus_bandwidth_gb_per_s(num_bytes, time_s, ranks)
    size = f"{num_bytes / 2**20:g} MiB in {1000 * time_s:.3g} ms"
    found = f"{_ranks(world)}, {result['backend']}: the sum is right; {bandwidth:.3g} GB/s of bus bandwidth, {size}"
    if not world.joined and world.num_nodes > 1:
        return Finding(NAME, "warning", found, "start doctor with torchrun or srun to include the other nodes")
    return Finding(NAME, "ok", found)


def _remedy(world: World) -> str:
    chosen = [f"{name}={os.environ[name]}" for name in CHOSEN_INTERFACES if name in os.environ]
    if chosen:
        usable = ", ".join(name for name, addresses in interfaces().items() if addresses)
        return f"unset {' '.join(chosen)}, or name an interface of this node: {usable}"
    if world.num_nodes > 1:
        return "open the ranks' ports between the nodes, and name their network with launch.interface"
    if world.accelerator == "cuda":
        return "NCCL_DEBUG=INFO prints details; NCCL_P2P_DISABLE=1 or NCCL_SHM_DISABLE=1 shows whether a link is faulty"
    return "the ranks meet at 127.0.0.1: check the firewall for loopback, and the limits on processes and memory"
