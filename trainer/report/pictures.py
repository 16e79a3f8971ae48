"""Pictures and tables that a task has left in its run directory, embedded into the page."""

from __future__ import annotations

import base64
import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.run.files import CURVES_FILE
from trainer.run.media import TYPES, find_pictures, find_tables

MAX_FRAMES, MAX_PICTURES = 24, 12
MAX_BYTES = 8 * 2**20  # of all pictures of a run
MAX_ROWS, MAX_CELL = 20, 300


@dataclass(frozen=True)
class Frame:
    """One picture as a data: URL. caption: its file, or the step it was made at."""

    caption: str
    url: str


@dataclass(frozen=True)
class Album:
    """A picture, or pictures of the same thing at several steps."""

    title: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Table:
    """The first rows of a file. has_more: more rows follow."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    has_more: bool


@dataclass
class Gallery:
    """What was found. left_out: names of files for which there was no room or that cannot be read."""

    albums: list[Album] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_gallery(run_dir: Path, max_frames: int = MAX_FRAMES) -> Gallery:
    """Pictures and tables of a run. Args: max_frames: pictures of one series, evenly spaced with first and last."""
    gallery = Gallery()
    singles, series = _found(run_dir)
    room = MAX_BYTES
    groups = [(name, _evenly(frames, max_frames)) for name, frames in series.items()]
    groups += [(path.stem.replace("_", " "), [(path.name, path)]) for path in singles]
    for title, frames in groups:
        size = sum(path.stat().st_size for _, path in frames)
        if size > room or len(gallery.albums) == MAX_PICTURES:
            gallery.left_out.append(title)
            continue
        room -= size
        gallery.albums.append(Album(title, tuple(Frame(caption, embedded(path)) for caption, path in frames)))
    for file in find_tables(run_dir):
        table = read_table(file)
        if table is None:
            gallery.left_out.append(file.name)
        elif table.rows:
            gallery.tables.append(table)
    return gallery


def _found(run_dir: Path) -> tuple[list[Path], dict[str, list[tuple[str, Path]]]]:
    """Returns: pictures on their own, and (caption, file) in the order of steps by the name of a series."""
    singles: list[Path] = []
    series: dict[str, list[tuple[str, Path]]] = {}
    for found in find_pictures(run_dir):
        if found.step is not None:
            series.setdefault(found.series, []).append((f"step {found.step:,}", found.path))
        elif found.path.name != CURVES_FILE:  # the page draws the curves itself
            singles.append(found.path)
    return singles, series


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def embedded(path: Path) -> str:
    """A picture as a data: URL."""
    return f"data:{TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def read_table(path: Path) -> Table | None:
    """The first rows of a CSV or JSON-lines file; None where it is damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.reader(file)
                columns = next(reader, [])
                rows = list(itertools.islice(reader, MAX_ROWS + 1))
            else:
                objects = [json.loads(line) for line in itertools.islice(file, MAX_ROWS + 1) if line.strip()]
                columns = list(dict.fromkeys(key for row in objects for key in row))
                rows = [[_cell(row.get(key, "")) for key in columns] for row in objects]
    except (OSError, ValueError, csv.Error, AttributeError, TypeError):
        return None
    shown = tuple(tuple(_cut(cell) for cell in row) for row in rows[:MAX_ROWS])
    return Table(path.name, tuple(columns), shown, len(rows) > MAX_ROWS)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"
