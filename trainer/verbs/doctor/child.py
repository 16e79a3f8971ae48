"""Processes that may hang or die in place of the doctor: drivers and broken packages do. Torch-free."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

_running: set[int] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Result:
    """How a child ended. code: None where it was ended at its time limit, negative where a signal ended it."""

    code: int | None
    output: str
    errors: str

    @property
    def error_line(self) -> str:
        """The line that tells what went wrong: an exception's where there is one, else the last."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        if self.code is None:
            return "no answer within its time limit" + (f": {lines[-1]}" if lines else "")
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        raised = [line for line in lines if line.partition(":")[0].rpartition(".")[2].endswith(("Error", "Exception"))]
        return (raised or lines or [f"exit code {self.code}"])[-1]


def run_child(command: Sequence[str], timeout_s: float, text: str | None = None) -> Result:
    """Run a command and wait for it, but no longer than its time limit; what it has started ends with it.

    Args: text: its standard input. Raises: OSError: it cannot be started.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE if text is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        with _lock:
            _running.add(process.pid)
        try:
            output, errors = process.communicate(text, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            kill_process_tree(process.pid)
            output, errors = process.communicate()
            return Result(None, output, errors)
        finally:
            with _lock:
                _running.discard(process.pid)
    return Result(process.returncode, output, errors)


def end_children() -> None:
    """End those that somebody still waits for."""
    with _lock:
        for child in _running:
            kill_process_tree(child)


def kill_process_tree(child: int) -> None:
    """Kill a child and all it has started, also those in sessions of their own, as the agent's ranks are."""
    try:
        parent = psutil.Process(child)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
