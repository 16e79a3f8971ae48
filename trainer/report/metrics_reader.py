"""metrics.jsonl as series, read again only from where the last reading ended."""

from __future__ import annotations

import json
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import UserError
from trainer.run.files import METRICS_FILE

NOT_METRICS = ("step", "epoch")
NUMBERS = {int, float}


@dataclass(frozen=True)
class Series:
    """One metric over steps. steps: (N,) int64; values: (N,) float64, in the order of the file."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class _Columns:
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


class MetricsReader:
    """Reads a file that another process may be appending to, or replaces when it resumes from a checkpoint."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.path = run_dir, run_dir / METRICS_FILE
        self._restart()

    def _restart(self) -> None:
        self.inode = self.offset = self.num_lines = self.last_step = 0
        self.columns: dict[str, _Columns] = {}
        self.tail = b""

    def refresh(self) -> None:
        """Read the lines that were completed since the last call. A last line without its end waits for it.

        Raises: UserError: the file cannot be read, or a complete line is damaged.
        """
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self.inode or state.st_size < self.offset:
                    self._restart()
                    self.inode = state.st_ino
                file.seek(self.offset)
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            self._restart()
            return
        except OSError as error:
            raise UserError(f"run={self.run_dir}: {METRICS_FILE} cannot be read ({error.strerror})") from error
        self.tail = lines.pop()
        for line in lines:
            self._add(line)
            self.offset += len(line) + 1
            self.num_lines += 1

    def _add(self, line: bytes) -> None:
        values = _parsed(line)
        if values is None:
            raise UserError(
                f"run={self.run_dir}: line {self.num_lines + 1} of {METRICS_FILE} is damaged",
                "remove this line to report the others",
            )
        step = self.last_step = values["step"]
        for name, value in values.items():
            if name not in NOT_METRICS:
                columns = self.columns.setdefault(name, _Columns())
                columns.steps.append(step)
                columns.values.append(value)

    @property
    def has_torn_line(self) -> bool:
        """Whether the file ends within a line: one that is being written, or was cut short by a kill."""
        return bool(self.tail.strip())

    def series(self) -> dict[str, Series]:
        """All metrics by name, in the order of their first appearance."""
        return {name: Series(np.array(c.steps), np.array(c.values)) for name, c in self.columns.items()}

    def latest(self) -> dict[str, float]:
        """The last value of each metric."""
        return {name: columns.values[-1] for name, columns in self.columns.items()}


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line as JSON; None where it is not an object of numbers with a step."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    return values if NUMBERS.issuperset(map(type, values.values())) else None
