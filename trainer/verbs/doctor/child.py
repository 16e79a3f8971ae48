"""Child processes for what may hang or crash, as drivers and broken packages do."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

# A child hangs when it, with all that it has started, uses less than this share of a core for so long. Elapsed time
# alone would call a child hung that waits for a core of a busy machine.
STALL_S = 20.0
IDLE_SHARE = 0.02
# For a child that hangs in a busy loop.
LONGEST_S = 180.0
POLL_S = 1.0

# The child of each thread that waits for one.
_running: dict[int, int] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Result:
    """How a child ended. code: None where it was killed because it hung, negative where a signal ended it."""

    code: int | None
    output: str
    errors: str

    @property
    def error_line(self) -> str:
        """The line of its output that names the error: an exception's where there is one, else the last."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        if self.code is None:
            return "no answer" + (f", the last line was: {lines[-1]}" if lines else "")
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        raised = [line for line in lines if line.partition(":")[0].rpartition(".")[2].endswith(("Error", "Exception"))]
        return (raised or lines or [f"exit code {self.code}"])[-1]


class Activity:
    """Whether a process, with all that it has started, still makes progress."""

    def __init__(self, pid: int, stall_s: float) -> None:
        self.pid, self.stall_s = pid, stall_s
        self.since, self.used_s = time.monotonic(), 0.0

    def stalled(self) -> bool:
        """Whether it has been idle for stall_s; to be called repeatedly."""
        used_s = _cpu_time_s(self.pid)
        # It also falls, where a process of the tree ends without a parent that waits for it.
        if used_s < self.used_s or used_s - self.used_s > IDLE_SHARE * self.stall_s:
            self.since, self.used_s = time.monotonic(), used_s
        return time.monotonic() - self.since > self.stall_s


def _cpu_time_s(pid: int) -> float:
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def run_child(command: Sequence[str], stall_s: float = STALL_S, text: str | None = None) -> Result:
    """Run a command until it ends or hangs; what it has started is killed with it.

    Args: stall_s: how long it may be idle. text: its standard input. Raises: OSError: it cannot be started.
    """
    deadline = time.monotonic() + LONGEST_S
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE if text is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        with _lock:
            _running[threading.get_ident()] = process.pid
        activity = Activity(process.pid, stall_s)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    output, errors = process.communicate(text, timeout=min(POLL_S, stall_s / 4))
                    return Result(process.returncode, output, errors)
                text = None  # communicate has taken it
                if activity.stalled() or time.monotonic() > deadline:
                    kill_process_tree(process.pid)
                    output, errors = process.communicate()
                    return Result(None, output, errors)
        finally:
            with _lock:
                del _running[threading.get_ident()]


def waits_for_child(thread: int | None) -> bool:
    """Whether a thread is in run_child, which returns by itself. Args: thread: its `ident`."""
    with _lock:
        return thread in _running


def end_children() -> None:
    """Kill the children that threads still wait for."""
    with _lock:
        for child in _running.values():
            kill_process_tree(child)


def kill_process_tree(child: int) -> None:
    """Kill a child and all it has started, also those in sessions of their own, as the agent's ranks are."""
    for process in _tree(child):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
