"""What a profiler has recorded: pictures and tables to embed, and files to open elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.report.pictures import MAX_PICTURES, Frame, Table, embedded, read_table
from trainer.run.media import find_profile

OF_A_RANK = re.compile(r"^(?P<name>.+)-rank-(?P<rank>\d+)$")
# By the end of a file's name, what opens it.
READERS = {
    ".json.gz": "ui.perfetto.dev or chrome://tracing",
    ".prof": "snakeviz",
    ".pickle": "docs.pytorch.org/memory_viz",
    ".nsys-rep": "Nsight Systems",
}


@dataclass(frozen=True)
class ProfileFile:
    """A file of a profile. url: relative to the page; empty where the page cannot link to it. reader: what opens it."""

    name: str
    url: str
    size_kib: int
    reader: str


@dataclass(frozen=True)
class Profile:
    """Of one run. tables: those of its first recorded rank."""

    pictures: tuple[Frame, ...]
    tables: tuple[Table, ...]
    files: tuple[ProfileFile, ...]


def read_profile(run_dir: Path, page_dir: Path | None = None) -> Profile | None:
    """What was recorded of a run; None where nothing was. Args: page_dir: of the page; None where it is no file."""
    paths = find_profile(run_dir)
    if not paths:
        return None
    pictures = [path for path in paths if path.suffix == ".png"][:MAX_PICTURES]
    tables = [table for path in _of_first_ranks(paths) if (table := read_table(path)) is not None]
    files = tuple(_file(path, page_dir) for path in paths)
    return Profile(tuple(Frame(path.name, embedded(path)) for path in pictures), tuple(tables), files)


def _of_first_ranks(paths: list[Path]) -> Iterator[Path]:
    """Of the tables of several ranks the first one's."""
    first: dict[str, tuple[int, Path]] = {}
    for path in paths:
        match = OF_A_RANK.match(path.stem)
        if match is not None and path.suffix == ".csv":
            first[match["name"]] = min(first.get(match["name"], (1 << 30, path)), (int(match["rank"]), path))
    return (path for _, path in first.values())


def _file(path: Path, page_dir: Path | None) -> ProfileFile:
    url = "" if page_dir is None else Path(os.path.relpath(path.resolve(), page_dir.resolve())).as_posix()
    reader = next((reader for end, reader in READERS.items() if path.name.endswith(end)), "")
    return ProfileFile(path.name, url, -(-path.stat().st_size // 1024), reader)
