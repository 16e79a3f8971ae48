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
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from trainer import slurm
from trainer.config import Config, LaunchConfig, SlurmLaunchConfig, TrainerConfig
from trainer.errors import EXIT_STOPPED, EXIT_USER, ConfigError, Problem, UserError
from trainer.network import interface_address, interface_of, parse_endpoint, resolve, source_address
from trainer.run import identity_hash
from trainer.torchrun import NODES_BACKEND, create_handler

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

# Ranks that outlive a dead peer get this long to end by themselves before they are killed.
SHUTDOWN_TIMEOUT_S = 5

# Names a file that a stopped rank makes instead of exiting with 75, which launchers between it and whoever has to know
# take for a failure: torchrun would start it again, and srun would kill its peers.
STOP_FILE = "TRAINER_STOP_FILE"
_asked_to_stop = threading.Event()
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

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
    def gpu_index(self) -> int:
        """This rank's GPU among those it sees; srun may have shown it only one."""
        return self.local_rank if num_visible_gpus() != 1 else 0

    @property
    def joined(self) -> bool:
        """Whether somebody else has started this process as one of the ranks."""
        return self.launcher in ("torchrun", "slurm")


def plan_world(trainer: TrainerConfig, launch: LaunchConfig, environment: Mapping[str, str] = os.environ) -> World:
    """What `trainer.devices`, `num_nodes` and `accelerator` mean here.

    Raises: ConfigError: more devices than there are, or other numbers than the launcher gave. UserError: the node that
        the ranks are to meet at has no address.
    """
    num_gpus = num_visible_gpus(environment)
    if trainer.accelerator == "cuda" and num_gpus == 0:
        raise ConfigError([Problem("trainer.accelerator", "cuda", "no GPU is visible here; possible: cpu, auto")])
    accelerator = "cuda" if trainer.accelerator != "cpu" and num_gpus else "cpu"
    if isinstance(launch, SlurmLaunchConfig) and (problems := slurm.geometry_problems(launch, environment)):
        raise ConfigError(problems)
    joined = joined_world(accelerator, launch, environment)
    if joined is not None:
        _check_joined(trainer, launch, joined, environment)
        return joined
    if node_range(trainer, launch)[1] > 1 and rendezvous_endpoint(launch, environment) is None:
        advice = "start this line with torchrun or srun on each node, or name one of them: launch.endpoint=HOST:PORT"
        raise ConfigError([Problem("trainer.num_nodes", trainer.num_nodes, advice)])
    available = num_gpus if accelerator == "cuda" else 1
    devices = available if trainer.devices == "auto" else trainer.devices
    if accelerator == "cuda" and devices > num_gpus:
        raise ConfigError([Problem("trainer.devices", devices, f"{num_gpus} GPU(s) are visible here")])
    nodes = _num_nodes(trainer, launch)
    world = World("single" if devices * nodes == 1 else "elastic", accelerator, devices * nodes, devices, nodes)
    if problems := slurm.allocation_problems(trainer.devices, world.world_size, environment):
        raise ConfigError(problems)
    return world


def planned_world(trainer: TrainerConfig, launch: LaunchConfig) -> World:
    """What would run, whether or not its devices are here. Raises: ConfigError: numbers that contradict.

    Several devices of which none is visible are taken for GPUs of another machine.
    """
    if isinstance(launch, SlurmLaunchConfig):
        return submitted_world(trainer, launch)
    num_gpus, nodes = num_visible_gpus(), trainer.num_nodes
    several = nodes > 1 or (trainer.devices != "auto" and trainer.devices > 1)
    on_gpus = trainer.accelerator == "cuda" or (trainer.accelerator == "auto" and (num_gpus > 0 or several))
    local = max(1, num_gpus if on_gpus else 1) if trainer.devices == "auto" else trainer.devices
    launcher = "single" if local * nodes == 1 else "elastic"
    return World(launcher, "cuda" if on_gpus else "cpu", local * nodes, local, nodes)


def submitted_world(trainer: TrainerConfig, launch: LaunchConfig) -> World:
    """What a batch job will be given, whatever this machine has. Raises: ConfigError: numbers that contradict."""
    assert isinstance(launch, SlurmLaunchConfig)
    accelerator = "cuda" if launch.gpus_per_node else "cpu"
    local = (launch.gpus_per_node or 1) if trainer.devices == "auto" else trainer.devices
    problems = []
    if trainer.accelerator not in ("auto", accelerator):
        advice = f"launch.gpus_per_node={launch.gpus_per_node}"
        problems.append(Problem("trainer.accelerator", trainer.accelerator, advice))
    if trainer.num_nodes not in (1, launch.nodes):
        problems.append(Problem("trainer.num_nodes", trainer.num_nodes, f"launch.nodes={launch.nodes}; leave one out"))
    if accelerator == "cuda" and local > launch.gpus_per_node:
        problems.append(Problem("trainer.devices", local, f"launch.gpus_per_node={launch.gpus_per_node}"))
    if problems:
        raise ConfigError(problems)
    return World("slurm", accelerator, local * launch.nodes, local, launch.nodes)


def node_range(trainer: TrainerConfig, launch: LaunchConfig) -> tuple[int, int]:
    """Fewest and most nodes that a run may be on."""
    nodes = _num_nodes(trainer, launch)
    return launch.min_nodes or nodes, launch.max_nodes or nodes


def _num_nodes(trainer: TrainerConfig, launch: LaunchConfig) -> int:
    return launch.nodes if isinstance(launch, SlurmLaunchConfig) else trainer.num_nodes


def rendezvous_endpoint(launch: LaunchConfig, environment: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Where the ranks of several nodes meet: (host, port) as configured, or on the first node of a SLURM step."""
    if launch.endpoint is not None:
        return parse_endpoint(launch.endpoint)
    if not slurm.is_rank(environment):
        return None
    node = slurm.first_host(environment["SLURM_STEP_NODELIST"])
    return slurm.node_address(node), slurm.step_port(environment)


def is_joined(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or srun has started this process as one of several ranks."""
    return "TORCHELASTIC_RUN_ID" in environment or slurm.is_rank(environment)


def joined_world(
    accelerator: Literal["cpu", "cuda"], launch: LaunchConfig, environment: Mapping[str, str] = os.environ
) -> World | None:
    """The world that torchrun or srun has put this process into, if one has."""
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        size = int(environment["WORLD_SIZE"])
        rank, local_rank = int(environment["RANK"]), int(environment["LOCAL_RANK"])
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        return World("torchrun", accelerator, size, local, size // local, rank, local_rank, address, port)
    # With one task a node, each task is the agent that starts its node's ranks.
    agents = isinstance(launch, SlurmLaunchConfig) and launch.starter == "torchrun"
    if slurm.is_rank(environment) and not agents:
        size, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
        rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        address, port = "127.0.0.1", slurm.step_port(environment)
        if nodes > 1:
            address, port = rendezvous_endpoint(launch, environment) or (address, port)
        return World("slurm", accelerator, size, size // nodes, nodes, rank, local_rank, address, port)
    return None


def _check_joined(trainer: TrainerConfig, launch: LaunchConfig, world: World, environment: Mapping[str, str]) -> None:
    problems = []
    if trainer.devices not in ("auto", world.local_world_size):
        advice = (
            f"{world.launcher} started {world.local_world_size} rank(s) on this node; leave it out or make it equal"
        )
        problems.append(Problem("trainer.devices", trainer.devices, advice))
    low, high = node_range(trainer, launch)
    if high > 1 and not low <= world.num_nodes <= high:
        problems.append(
            Problem("trainer.num_nodes", trainer.num_nodes, f"{world.launcher} spans {world.num_nodes} node(s)")
        )
    if world.launcher == "slurm" and len(set(slurm.tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"]))) > 1:
        advice = f"srun started {environment['SLURM_STEP_TASKS_PER_NODE']} tasks; use --ntasks-per-node"
        problems.append(Problem("trainer.devices", trainer.devices, advice))
    num_gpus = int(environment.get("SLURM_GPUS_ON_NODE", num_visible_gpus(environment)))
    if world.accelerator == "cuda" and world.local_world_size > num_gpus:
        advice = f"{world.launcher} started {world.local_world_size} ranks on a node with {num_gpus} GPU(s)"
        problems.append(Problem("trainer.devices", trainer.devices, advice))
    if problems:
        raise ConfigError(problems)


def num_visible_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """GPUs this process may use, without loading torch."""
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not present:
        return present
    return min(present, len([part for part in chosen.split(",") if part.strip() and part.strip() != "-1"]))


def start_ranks(world: World, launch: LaunchConfig, arguments: Sequence[str], run_dir: Path) -> None:
    """Start this host's ranks as `python -m trainer.rank ARGUMENTS` and wait for them.

    Raises: UserError: what a rank told the user. RankFailure: a rank failed; the first cause, told last.
    """
    from trainer.rendezvous import LOOPBACK, LOOPBACK_BACKEND

    _run_agent(
        ["-m", "trainer.rank", *arguments],
        run_dir,
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world.world_size,
        run_id=f"{run_dir.name}-{os.getpid()}",
        rdzv_backend=LOOPBACK_BACKEND,
        max_restarts=launch.max_restarts,
        local_addr=LOOPBACK,
    )


def start_nodes(world: World, config: Config, words: Sequence[str]) -> bool:
    """Start this node's ranks, which join those of the other nodes that were started with the same words.

    Returns: whether the ranks stopped on request. Raises: as start_ranks, and UserError: a wrong endpoint or interface.
    """
    low, high = node_range(config.trainer, config.launch)
    interface = config.launch.interface
    endpoint = rendezvous_endpoint(config.launch)
    assert endpoint is not None, "plan_world has checked it"
    with tempfile.TemporaryDirectory() as directory:
        # A job script may have named the file already, and looks at it itself.
        stop_file = Path(os.environ.setdefault(STOP_FILE, str(Path(directory) / "stopped")))
        _run_agent(
            ["-m", "trainer.rank", "join", *words],
            None,
            min_nodes=low,
            max_nodes=high,
            nproc_per_node=world.local_world_size,
            run_id=f"trainer-{identity_hash(config)}",
            rdzv_backend=NODES_BACKEND,
            rdzv_endpoint=f"{endpoint[0]}:{endpoint[1]}",
            rdzv_configs={
                "join_timeout": config.launch.timeout_s,
                **({"interface": interface} if interface else {}),
            },
            max_restarts=config.launch.max_restarts,
        )
        return stop_file.exists()


def _run_agent(command: Sequence[str], run_dir: Path | None, **options: Any) -> None:
    """Let torch's elastic agent run the ranks of this host, each as `python COMMAND`.

    SIGTERM, SIGINT and SIGUSR1 are passed on: the ranks agree on a step to stop at and end by themselves.
    """
    # A store warns of every connection that ends, with a stack of C++ frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError, rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from trainer.rendezvous import LOOPBACK_BACKEND, create_loopback_rendezvous

    rendezvous_handler_registry.register(LOOPBACK_BACKEND, create_loopback_rendezvous)
    rendezvous_handler_registry.register(NODES_BACKEND, create_handler)
    config = LaunchConfig(
        shutdown_timeout=SHUTDOWN_TIMEOUT_S, signals_to_handle="SIGHUP", logs_specs=DefaultLogsSpecs(), **options
    )
    # What elastic says of a failure, `_first_cause` says in a sentence, and of one that is mended, `_TellFailure`.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if config.max_restarts:
        failures = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
        failures.addHandler(_TellFailure(logging.ERROR))
        failures.setLevel(logging.ERROR)
        failures.propagate = False
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.nproc_per_node)))
    with _passing_signals_on():
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            raise _first_cause(error, run_dir) from None
        except RendezvousError as error:
            raise RankFailure(f"the nodes have not met at {config.rdzv_endpoint}: {error}") from error


class _TellFailure(logging.Handler):
    """One line for the failure that makes elastic restart the ranks, which it passes to its log only."""

    def emit(self, record: logging.LogRecord) -> None:
        """Elastic's arguments: exit code, local rank, process, command."""
        if record.msg.startswith("failed (exitcode") and isinstance(record.args, tuple):
            code = int(str(record.args[0]))
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            print(f"rank {record.args[1]} of this host {how}", file=sys.stderr)


class RankFailure(Exception):
    """A rank failed. The message names the rank, its cause and its log."""


def _first_cause(error: ChildFailedError, run_dir: Path | None) -> Exception:
    """The failure that made the others fail: a rank that was killed or raised, not one whose peer vanished."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int, int]:
        rank, failure = item
        ended_by_agent = failure.exitcode == -signal.SIGTERM
        # elastic's message is the text, or the whole record where the rank has written one.
        lost_peer = re.search(r"Connection \w+ by peer|PeerLost", str(failure.message)) is not None
        return ended_by_agent, lost_peer, failure.timestamp, rank

    rank, failure = min(error.failures.items(), key=order)
    data: Any = failure.error_file_data.get("message")
    if failure.exitcode == EXIT_USER and isinstance(data, dict):
        return UserError(*re.sub(r"^\w+: ", "", data["message"]).split("\n"))
    where = f" Its log: {run_dir / 'logs' / f'rank-{rank}.log'}" if run_dir else ""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = "; out of memory?" if name == "SIGKILL" else ""
        return RankFailure(f"rank {rank} was ended by {name}{hint}.{where}")
    if isinstance(data, dict) and data["message"].startswith("PeerLost: "):
        return RankFailure(data["message"].removeprefix("PeerLost: "))
    if isinstance(data, dict):
        trace = data["extraInfo"]["py_callstack"].rstrip()
        return RankFailure(f"{trace}\nrank {rank} failed first, as above.{where}")
    return RankFailure(f"rank {rank} exited with code {failure.exitcode}.{where}")


@contextmanager
def _passing_signals_on() -> Iterator[None]:
    """Hand signals to the ranks as SIGTERM instead of dying: elastic would end them before they can save."""
    import psutil

    def hand_on(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def loopback_interface() -> str:
    """Name of the loopback interface: lo on Linux, lo0 on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), "lo")


def local_address(world: World, launch: LaunchConfig) -> str:
    """This host's address as the other nodes see it. Raises: UserError: no such interface, or no route."""
    if launch.interface is not None:
        return interface_address(launch.interface)
    return source_address(resolve(world.master_addr) or world.master_addr)


def rank_environment(world: World, launch: LaunchConfig) -> dict[str, str]:
    """What torch.distributed and Lightning read, for a rank that torchrun has not prepared.

    Raises: UserError: no such interface, or no route to the other nodes.
    """
    interface = loopback_interface() if world.num_nodes == 1 else interface_of(local_address(world, launch))
    return {
        "RANK": str(world.rank),
        "LOCAL_RANK": str(world.local_rank),
        "WORLD_SIZE": str(world.world_size),
        "LOCAL_WORLD_SIZE": str(world.local_world_size),
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": str(world.master_port),
        **({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}),
    }


def stop_before_training() -> None:
    """Until training takes the signal over: SIGUSR1, which SLURM sends ahead of a time limit, ends the process as
    stopped, not as killed."""

    def stop(number: int, frame: FrameType | None) -> None:
        _asked_to_stop.set()
        if STOP_FILE in os.environ:
            Path(os.environ[STOP_FILE]).touch()
        # Not 0: peers may be waiting for this rank where no handler of theirs can run, and srun has to end them.
        sys.exit(EXIT_STOPPED)

    signal.signal(signal.SIGUSR1, stop)


def asked_to_stop() -> bool:
    """Whether a stop has come before training, so that what fails now may have failed for that."""
    return _asked_to_stop.is_set()
