"""A table of a profile, for programs and for readers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

ROWS_IN_TEXT = 40


def write_table(path: Path, title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> None:
    """Write all rows to PATH.csv and the first ones, aligned, to PATH.txt. Args: path: without a suffix."""
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *cells])
    shown = [list(columns), *cells[:ROWS_IN_TEXT]]
    widths = [max(len(row[column]) for row in shown) for column in range(len(columns))]
    numeric = [bool(rows) and not isinstance(cell, str) for cell in (rows[0] if rows else columns)]
    lines = [
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)).rstrip()
        for row in shown
    ]
    more = len(rows) - ROWS_IN_TEXT
    lines += [f"{more} more in {path.with_suffix('.csv').name}"] if more > 0 else []
    path.with_suffix(".txt").write_text("\n".join([title, "", *lines]) + "\n", encoding="utf-8")
