"""Signals that request a stop before training handles them, and the stop file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.errors import EXIT_STOPPED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
Handler = Callable[[int, FrameType | None], Any]

# Names a file that a stopped rank creates instead of exiting with 75: a launcher between the rank and the job script
# would take that code for a failure. torchrun would restart the rank, and srun would kill its peers.
STOP_FILE_VARIABLE = "TRAINER_STOP_FILE"
# Appended to its name: a rank has failed, and the launcher has ended the others by a signal.
FAILED = ".failed"
_stop_requested = threading.Event()


def stop_before_training() -> None:
    """Handle stop signals until training does.

    SIGTERM and SIGUSR1, which SLURM sends ahead of a time limit, exit with 75. SIGINT raises KeyboardInterrupt, which
    exits with 130 before a run is open and with 75 afterwards.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _stop_requested.set()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        create_stop_file()
        # Not 0: peers may be waiting for this rank where no handler of theirs can run, and srun has to end them.
        sys.exit(EXIT_STOPPED)

    _stop_requested.clear()
    handle_stop_signals(stop)


def handle_stop_signals(handler: Handler) -> dict[int, Any]:
    """Set the handler of all stop signals. Python lets only the main thread do so; in another one nothing is set.

    Returns: the handlers before, by signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS}


def stop_requested() -> bool:
    """Whether a stop was requested before training, so that a failure now may be its consequence."""
    return _stop_requested.is_set()


def create_stop_file() -> bool:
    """Create the stop file. Returns: whether the launcher has named one."""
    if STOP_FILE_VARIABLE not in os.environ:
        return False
    Path(os.environ[STOP_FILE_VARIABLE]).touch()
    return True


def create_failure_file() -> None:
    """Let the launcher know that a rank has failed, where it has named a stop file: the job is not to run again."""
    if STOP_FILE_VARIABLE in os.environ:
        Path(os.environ[STOP_FILE_VARIABLE] + FAILED).touch()


def has_stop_file() -> bool:
    """Whether a rank has stopped on request."""
    return STOP_FILE_VARIABLE in os.environ and Path(os.environ[STOP_FILE_VARIABLE]).exists()


def remove_stop_file() -> None:
    """Remove the stop file, where the launcher has named one, and what says that a rank has failed."""
    if STOP_FILE_VARIABLE in os.environ:
        for suffix in ("", FAILED):
            Path(os.environ[STOP_FILE_VARIABLE] + suffix).unlink(missing_ok=True)
