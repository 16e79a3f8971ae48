"""Start the ranks of this host with torch.distributed.elastic and wait for them."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainer.config.identity import identity_hash
from trainer.config.nodes import node_range
from trainer.config.schema import Config, LaunchConfig
from trainer.errors import EXIT_STOPPED, EXIT_USER, MicroBatchTooLarge, RankFailure, UserError
from trainer.faults.hang_page import error_lines, newest_page
from trainer.faults.signals import STOP_FILE_VARIABLE, handle_stop_signals
from trainer.launch.discover import rendezvous_endpoint
from trainer.launch.network import LOOPBACK, LOOPBACK_BACKEND, NODES_BACKEND
from trainer.launch.secret import job_secret, new_secret, shared_with_ranks
from trainer.launch.torchrun import create_handler
from trainer.world import World

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

# Ranks that survive a dead peer get this long to end by themselves before they are killed.
SHUTDOWN_TIMEOUT_S = 5
# Exceptions of ranks whose message says it all, so that a traceback would only hide it.
KNOWN_FAILURE = re.compile(r"(PeerLost|NonFinite|ReplicasDiffer|MicroBatchTooLarge): ")


def start_ranks(world: World, launch: LaunchConfig, verb: str, run_dir: Path, words: Sequence[str]) -> Any:
    """Start this host's ranks as `python -m trainer.rank VERB RUN_DIR RESULT WORDS` and wait for them.

    Returns: what the verb gave on rank 0, a JSON value.
    Raises: UserError: a rank reported a user error. RankFailure: a rank failed; the message names the first cause.
    """
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        run_agent(
            ["-m", "trainer.rank", verb, str(run_dir), str(result), *words],
            run_dir,
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=world.world_size,
            run_id=f"{run_dir.name}-{os.getpid()}",
            rdzv_backend=LOOPBACK_BACKEND,
            max_restarts=launch.max_restarts,
            local_addr=LOOPBACK,
        )
        return json.loads(result.read_text(encoding="utf-8"))


def start_nodes(world: World, config: Config, words: Sequence[str]) -> bool:
    """Start this node's ranks, which join those of the other nodes that were started with the same words.

    Returns: whether the ranks stopped on request. Raises: as start_ranks; UserError also for a wrong endpoint or
        interface.
    """
    low, high = node_range(config.trainer, config.launch)
    interface = config.launch.interface
    endpoint = rendezvous_endpoint(config.launch)
    assert endpoint is not None, "plan_world has checked it"
    with tempfile.TemporaryDirectory() as directory:
        # A job script may have set the variable already, and checks the file itself.
        stop_file = Path(os.environ.setdefault(STOP_FILE_VARIABLE, str(Path(directory) / "stopped")))
        run_agent(
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


def run_agent(command: Sequence[str], run_dir: Path | None, **options: Any) -> None:
    """Run the ranks of this host under torch's elastic agent, each as `python COMMAND`.

    SIGTERM, SIGINT and SIGUSR1 are forwarded: the ranks agree on a step to stop at and end by themselves.
    """
    # torch's store logs every closed connection as a warning with a C++ stack trace.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError, rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from trainer.launch.authentication import stop_answering
    from trainer.launch.rendezvous import create_loopback_rendezvous

    rendezvous_handler_registry.register(LOOPBACK_BACKEND, create_loopback_rendezvous)
    rendezvous_handler_registry.register(NODES_BACKEND, create_handler)
    config = LaunchConfig(
        shutdown_timeout=SHUTDOWN_TIMEOUT_S, signals_to_handle="SIGHUP", logs_specs=DefaultLogsSpecs(), **options
    )
    # Elastic's log of a failure is replaced by one sentence: from `_first_cause`, or `_RestartReport` before a restart.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if config.max_restarts:
        failures = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
        failures.addHandler(_RestartReport(run_dir))
        failures.setLevel(logging.ERROR)
        failures.propagate = False
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.nproc_per_node)))
    on_one_host = options["rdzv_backend"] == LOOPBACK_BACKEND
    secret = new_secret() if on_one_host else job_secret(options["run_id"])
    started_s = time.time()
    with _forwarding_signals() as received, shared_with_ranks(secret):
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            if _stopped(error, received):
                raise SystemExit(EXIT_STOPPED) from None
            page = newest_page(run_dir, started_s) if run_dir else None
            raise RankFailure("\n".join(error_lines(page))) if page else _first_cause(error, run_dir) from None
        except RendezvousError as error:
            raise RankFailure(f"the nodes did not meet at {config.rdzv_endpoint}: {error}") from error
        finally:
            stop_answering()


class _RestartReport(logging.Handler):
    """Prints a line for a failure after which elastic restarts the ranks: elastic itself writes only to its log.

    The first lines of a page about a hang say why its ranks were ended.
    """

    def __init__(self, run_dir: Path | None) -> None:
        super().__init__(logging.ERROR)
        self.run_dir, self.since_s = run_dir, time.time()

    def emit(self, record: logging.LogRecord) -> None:
        """The arguments of elastic's record are exit code, local rank, process, command."""
        if record.msg.startswith("failed (exitcode") and isinstance(record.args, tuple):
            code = int(str(record.args[0]))
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            page = newest_page(self.run_dir, self.since_s) if self.run_dir else None
            self.since_s = time.time()
            lines = error_lines(page) if page else [f"rank {record.args[1]} of this host {how}"]
            print("\n".join(lines), file=sys.stderr)


def _first_cause(error: ChildFailedError, run_dir: Path | None) -> Exception:
    """The failure that caused the others: of a rank that was killed or raised, not of one that lost its peer."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int, int]:
        rank, failure = item
        ended_by_agent = failure.exitcode == -signal.SIGTERM
        # The message is a text, or the whole record where the rank has written an error file.
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
    if isinstance(data, dict) and (known := KNOWN_FAILURE.match(data["message"])):
        kind = MicroBatchTooLarge if known[1] == MicroBatchTooLarge.__name__ else RankFailure
        return kind(data["message"][known.end() :])
    if isinstance(data, dict):
        trace = data["extraInfo"]["py_callstack"].rstrip()
        return RankFailure(f"{trace}\nrank {rank} failed first, as above.{where}")
    return RankFailure(f"rank {rank} exited with code {failure.exitcode}.{where}")


def _stopped(error: ChildFailedError, received: Sequence[int]) -> bool:
    """Whether the ranks ended because of the signals received: before training, or by a second Ctrl-C."""
    codes = {failure.exitcode for failure in error.failures.values()}
    return signal.SIGINT in received[1:] or (bool(received) and bool(codes & {EXIT_STOPPED, -signal.SIGTERM}))


@contextmanager
def _forwarding_signals() -> Iterator[list[int]]:
    """Forward stop signals to the ranks as SIGTERM: elastic's own handler would end them before they can save.

    A second Ctrl-C kills them. Yields: the signals received so far.
    """
    import psutil

    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        at_once = bool(received) and number == signal.SIGINT
        received.append(number)
        for child in psutil.Process().children():
            child.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)

    before = handle_stop_signals(forward)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
