"""What every profiler of steps has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from trainer.clock import STATES


def is_range(name: str) -> bool:
    """Whether a name in a profile is that of a step or of a state of the clock."""
    return name.startswith("step ") or name.partition(" ")[0] in STATES


class Recorder(ABC):
    """Records from `start` to `stop`, which writes the files of one rank.

    steps: the first and the last one to record; after a run that has ended within them, the last one of it.
    """

    def __init__(self, folder: Path, rank: int, steps: tuple[int, int]) -> None:
        self.folder, self.rank, self.steps = folder, rank, steps

    @property
    def title(self) -> str:
        """What is recorded, for tables and pictures."""
        first, last = self.steps
        return f"{f'steps {first} to {last}' if first < last else f'step {first}'}, rank {self.rank}"

    @abstractmethod
    def start(self) -> None:
        """Record from now on."""

    @abstractmethod
    def stop(self) -> None:
        """Record no more, and write the files."""

    @abstractmethod
    def open_range(self, name: str) -> Any:
        """Name what follows. Returns: what `close_range` takes."""

    @abstractmethod
    def close_range(self, opened: Any) -> None:
        """The named part ends here."""

    def file(self, name: str, suffix: str) -> Path:
        """Path of a file of this rank."""
        self.folder.mkdir(exist_ok=True)
        return self.folder / f"{name}-rank-{self.rank}{suffix}"
