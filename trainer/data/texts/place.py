"""Where a text came from, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError


@dataclass(frozen=True)
class Place:
    """A file. key: of the configuration or command line that names it."""

    key: str
    path: Path

    def __str__(self) -> str:
        return f"{self.key}={self.path}"

    @property
    def prefix(self) -> str:
        """Of the keys beside `key`: "data." where that is data.train."""
        return self.key.rpartition(".")[0] + "." if "." in self.key else ""

    def row(self, number: int, line: int | None) -> str:
        """A row as it is counted in the file."""
        return row_name(str(self), number, line)

    def error(self, line: int, what: str, remedy: str) -> UserError:
        """An error at a line of the file."""
        return UserError(f"{self}: line {line}: {what}", remedy)


@dataclass(frozen=True)
class Row:
    """A row of a file.

    number: from 1, a header not counted. line: where it begins, from 1; None where the format has no lines. values: by
    column, as the file has them.
    """

    number: int
    line: int | None
    values: Mapping[str, Any]


def row_name(where: str, number: int, line: int | None) -> str:
    """How a message names a row. Args: number, line: from 1."""
    return f"{where}: row {number}" + ("" if line is None else f" (line {line})")
