"""Signals that request a stop before training handles them, and the stop file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from trainer.errors import EXIT_STOPPED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# Names a file that a stopped rank creates instead of exiting with 75: a launcher between the rank and the job script
# would take that code for a failure. torchrun would restart the rank, and srun would kill its peers.
STOP_FILE_VARIABLE = "TRAINER_STOP_FILE"
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

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def stop_requested() -> bool:
    """Whether a stop was requested before training, so that a failure now may be its consequence."""
    return _stop_requested.is_set()


def create_stop_file() -> bool:
    """Create the stop file. Returns: whether the launcher has named one."""
    if STOP_FILE_VARIABLE not in os.environ:
        return False
    Path(os.environ[STOP_FILE_VARIABLE]).touch()
    return True


def remove_stop_file() -> None:
    """Remove the stop file, where the launcher has named one."""
    if STOP_FILE_VARIABLE in os.environ:
        Path(os.environ[STOP_FILE_VARIABLE]).unlink(missing_ok=True)
