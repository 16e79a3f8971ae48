"""Reads what the ranks of the task `watched` have written; waits for conditions; forks runs."""

import gc
import json
import os
import socket
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from conftest import REPOSITORY, SPIRALS

from trainer.cli import main

WATCHED = REPOSITORY / "tests" / "fixtures" / "watched"
WATCHED_WORDS = [
    f"plugins=[{SPIRALS},{WATCHED}]",
    "task=spirals",
    "task.name=watched",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
]


def written_lines(folder: Path) -> list[dict[str, Any]]:
    """All complete lines so far, ordered by time."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().split("\n") if line.endswith("}")]
    return sorted((json.loads(line) for line in lines), key=lambda line: line["time"])


def last_step(folder: Path) -> int:
    """The newest step that any rank has completed."""
    return max((line["step"] for line in written_lines(folder)), default=0)


def history(folder: Path) -> dict[int, list[int]]:
    """Samples of each step by rank; of a step that was repeated after a resume, those of the last time."""
    by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in written_lines(folder):
        by_step[line["step"]].append(line)
    # Either rank may write its line first.
    last = {
        step: sorted(lines[-lines[-1]["world_size"] :], key=lambda line: line["rank"])
        for step, lines in by_step.items()
    }
    return {step: [index for line in lines for index in line["indices"]] for step, lines in sorted(last.items())}


def free_port() -> int:
    """An unused TCP port of this host."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def run_forked(
    words: Sequence[str],
    directory: Path,
    ranks: int = 1,
    prepare: Callable[[int], None] = lambda rank: None,
    **environment: str,
) -> list[int]:
    """Run a command line in forked processes, one a rank: no time is spent on imports, and a kill is a real one.

    Args: prepare: called in each process first. Returns: exit codes by rank, negative for a signal.
    """
    port = free_port()
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            # To destroy a store that an earlier test has left is to join a thread that was not forked, and a crash.
            gc.freeze()
            code = 1
            try:
                os.chdir(directory)
                os.environ.update(environment)
                if ranks > 1:
                    os.environ.update(_torchrun_environment(rank, ranks, port))
                prepare(rank)
                code = main(words)
            except SystemExit as request:
                code = int(request.code or 0)
            except BaseException:  # noqa: BLE001 - nothing may return into the test that was forked
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _torchrun_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "forked",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def wait_until(condition: Callable[[], bool], timeout_s: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Poll for a condition, as long as the process that is to meet it is alive."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert alive(), "the process has ended"
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def leftovers(directory: Path) -> list[int]:
    """Processes that still run in a directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(directory):
                found.append(process.pid)
        except (psutil.AccessDenied, psutil.NoSuchProcess, FileNotFoundError):
            continue
    return found
