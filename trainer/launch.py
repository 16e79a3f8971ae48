"""Plan the world; start its ranks with torch.distributed.elastic, or join those that torchrun or srun have made.

Torch-free at import: the world is planned, and checked against the configuration, before torch is loaded.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from trainer.config import TrainerConfig
from trainer.errors import EXIT_USER, ConfigError, Problem, UserError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

# Ranks that outlive a dead peer get this long to end by themselves before they are killed.
SHUTDOWN_TIMEOUT_S = 5

Launcher = Literal["single", "elastic", "torchrun", "slurm"]


@dataclass(frozen=True)
class World:
    """Who takes part in a run. rank and local_rank are this process's own, 0 in a parent that is yet to start ranks.

    accelerator: resolved. launcher: who makes the ranks; single is this process alone.
    """

    launcher: Launcher
    accelerator: Literal["cpu", "cuda"]
    world_size: int
    local_world_size: int
    num_nodes: int
    rank: int = 0
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0

    @property
    def joined(self) -> bool:
        """Whether somebody else has started this process as one of the ranks."""
        return self.launcher in ("torchrun", "slurm")


def plan_world(trainer: TrainerConfig, environment: Mapping[str, str] = os.environ) -> World:
    """What `trainer.devices`, `num_nodes` and `accelerator` mean here.

    Raises: ConfigError: more devices than there are, or other numbers than the launcher gave.
    """
    num_gpus = num_visible_gpus(environment)
    if trainer.accelerator == "cuda" and num_gpus == 0:
        raise ConfigError([Problem("trainer.accelerator", "cuda", "no GPU is visible here; possible: cpu, auto")])
    accelerator = "cuda" if trainer.accelerator != "cpu" and num_gpus else "cpu"
    joined = joined_world(accelerator, environment)
    if joined is not None:
        _check_joined(trainer, joined)
        return joined
    if trainer.num_nodes > 1:
        advice = "nodes are joined by a launcher: start this line with torchrun or srun on each of them"
        raise ConfigError([Problem("trainer.num_nodes", trainer.num_nodes, advice)])
    available = num_gpus if accelerator == "cuda" else 1
    devices = available if trainer.devices == "auto" else trainer.devices
    if accelerator == "cuda" and devices > num_gpus:
        raise ConfigError([Problem("trainer.devices", devices, f"{num_gpus} GPU(s) are visible here")])
    return World("single" if devices == 1 else "elastic", accelerator, devices, devices, 1)


def joined_world(accelerator: Literal["cpu", "cuda"], environment: Mapping[str, str] = os.environ) -> World | None:
    """The world that torchrun or srun has put this process into, if one has."""
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        size = int(environment["WORLD_SIZE"])
        rank, local_rank = int(environment["RANK"]), int(environment["LOCAL_RANK"])
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        return World("torchrun", accelerator, size, local, size // local, rank, local_rank, address, port)
    # A batch script has SLURM_PROCID too; only the tasks of a step have been started as ranks.
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        size, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
        rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        # Ports of one machine's simultaneous jobs must differ; every rank derives the same one.
        job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
        port = 20000 + (job * 8 + step) % 20000
        address = "127.0.0.1" if nodes == 1 else first_host(environment["SLURM_STEP_NODELIST"])
        return World("slurm", accelerator, size, size // nodes, nodes, rank, local_rank, address, port)
    return None


def _check_joined(trainer: TrainerConfig, world: World) -> None:
    problems = []
    if trainer.devices not in ("auto", world.local_world_size):
        advice = (
            f"{world.launcher} started {world.local_world_size} rank(s) on this node; leave it out or make it equal"
        )
        problems.append(Problem("trainer.devices", trainer.devices, advice))
    if trainer.num_nodes not in (1, world.num_nodes):
        problems.append(
            Problem("trainer.num_nodes", trainer.num_nodes, f"{world.launcher} spans {world.num_nodes} node(s)")
        )
    if problems:
        raise ConfigError(problems)


def num_visible_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """GPUs this process may use, without loading torch."""
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not present:
        return present
    return min(present, len([part for part in chosen.split(",") if part.strip() and part.strip() != "-1"]))


def first_host(node_list: str) -> str:
    """First host of SLURM's compressed list: node[03-07,9] -> node03."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", node_list)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST={node_list}: not a node list")
    return match.group(1) + (match.group(2) or "")


def start_ranks(world: World, arguments: Sequence[str], run_dir: Path) -> None:
    """Start this host's ranks as `python -m trainer.rank ARGUMENTS` and wait for them.

    SIGTERM and SIGINT are passed on: the ranks agree on a step to stop at and end by themselves.

    Raises: UserError: what a rank told the user. RankFailure: a rank failed; the first cause, told last.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from trainer.loopback import BACKEND, create_loopback_rendezvous

    rendezvous_handler_registry.register(BACKEND, create_loopback_rendezvous)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world.world_size,
        run_id=f"{run_dir.name}-{os.getpid()}",
        rdzv_backend=BACKEND,
        max_restarts=0,
        local_addr="127.0.0.1",
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        signals_to_handle="SIGHUP",
        logs_specs=DefaultLogsSpecs(),
    )
    # What elastic says of a failure, `_first_cause` says in a sentence.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world.world_size)))
    with _passing_signals_on():
        try:
            elastic_launch(config, sys.executable)("-m", "trainer.rank", *arguments)
        except ChildFailedError as error:
            raise _first_cause(error, run_dir) from None


class RankFailure(Exception):
    """A rank failed. The message names the rank, its cause and its log."""


def _first_cause(error: ChildFailedError, run_dir: Path) -> Exception:
    """The failure that made the others fail: a rank that was killed or raised, not one whose peer vanished."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int, int]:
        rank, failure = item
        ended_by_agent = failure.exitcode == -signal.SIGTERM
        # elastic's message is the text, or the whole record where the rank has written one.
        lost_peer = re.search(r"Connection \w+ by peer", str(failure.message)) is not None
        return ended_by_agent, lost_peer, failure.timestamp, rank

    rank, failure = min(error.failures.items(), key=order)
    data: Any = failure.error_file_data.get("message")
    if failure.exitcode == EXIT_USER and isinstance(data, dict):
        return UserError(*re.sub(r"^\w+: ", "", data["message"]).split("\n"))
    log = run_dir / "logs" / f"rank-{rank}.log"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = "; out of memory?" if name == "SIGKILL" else ""
        return RankFailure(f"rank {rank} was ended by {name}{hint}. Its log: {log}")
    if isinstance(data, dict):
        trace = data["extraInfo"]["py_callstack"].rstrip()
        return RankFailure(f"{trace}\nrank {rank} failed first, as above. Its log: {log}")
    return RankFailure(f"rank {rank} exited with code {failure.exitcode}. Its log: {log}")


@contextmanager
def _passing_signals_on() -> Iterator[None]:
    """Hand SIGTERM and SIGINT to the ranks instead of dying: elastic would end them before they can save."""
    import psutil

    def hand_on(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def loopback_interface() -> str:
    """Name of the loopback interface: lo on Linux, lo0 on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), "lo")


def rank_environment(world: World) -> dict[str, str]:
    """What torch.distributed and Lightning read, for a rank that torchrun has not prepared."""
    values = {
        "RANK": str(world.rank),
        "LOCAL_RANK": str(world.local_rank),
        "WORLD_SIZE": str(world.world_size),
        "LOCAL_WORLD_SIZE": str(world.local_world_size),
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": str(world.master_port),
    }
    if world.num_nodes == 1:
        values |= {"GLOO_SOCKET_IFNAME": loopback_interface(), "NCCL_SOCKET_IFNAME": loopback_interface()}
    return values
