"""Time spent in training steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepClock:
    """A stopwatch that runs while steps are trained, and stands during evaluation and saving.

    elapsed_s: seconds so far, without the current stretch.
    """

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self.running_since: float | None = None

    def start(self) -> None:
        """Run; no effect where it runs already."""
        if self.running_since is None:
            self.running_since = time.perf_counter()

    def stop(self) -> None:
        """Stand; no effect where it stands already."""
        self.elapsed_s = self.read_s()
        self.running_since = None

    def read_s(self) -> float:
        """Seconds so far."""
        running_s = 0.0 if self.running_since is None else time.perf_counter() - self.running_since
        return self.elapsed_s + running_s

    def reset(self, elapsed_s: float = 0.0) -> None:
        """Set the seconds so far; it runs on, or stands, as before."""
        self.elapsed_s = elapsed_s
        if self.running_since is not None:
            self.running_since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stand within the block, then run again if it ran before."""
        ran = self.running_since is not None
        self.stop()
        try:
            yield
        finally:
            if ran:
                self.start()
