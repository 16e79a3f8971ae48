"""The signals that ask a run to stop, until training takes them over. Torch-free."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from trainer.errors import EXIT_STOPPED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# Names a file that a stopped rank makes instead of exiting with 75, which launchers between it and whoever has to know
# take for a failure: torchrun would start it again, and srun would kill its peers.
STOP_FILE = "TRAINER_STOP_FILE"
_asked_to_stop = threading.Event()


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
