"""A data set reads nothing outside of its own folder, whatever its files say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainer.config.yaml_limits import find_excess
from trainer.errors import UserError

if TYPE_CHECKING:
    import datasets

CARD = "README.md"
# datasets reads them too, and HDF5 has links to other files.
UNREAD_SUFFIXES = (".h5", ".hdf5")


def check_folder(place: Path, where: str) -> None:
    """Check a local set before `datasets` reads it. Args: where: names it in messages.

    Raises: UserError: a link leads out of it, its card names files elsewhere, or it has files that can.
    """
    root = own_root(place)
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise UserError(
                    f"{where}: {path.relative_to(place)} is a link to {path.readlink()}, outside of the set"
                )
            if path.suffix.lower() in UNREAD_SUFFIXES:
                raise UserError(f"{where}: {path.relative_to(place)} is HDF5, which can name files elsewhere")
    card = place / CARD
    for pattern in _patterns(card) if card.is_file() else ():
        if "://" in pattern or pattern.startswith(("/", "~")) or ".." in Path(pattern).parts:
            raise UserError(f"{where}: {CARD} names {pattern}, outside of the set")


def own_root(place: Path) -> Path:
    """The folder that a set's files may lie in: its own, and of a snapshot in the hub's cache also its blobs.

    Args: place: a folder, or a single file.
    """
    folder = place.resolve() if place.is_dir() else place.resolve().parent
    return folder.parents[1] if folder.parent.name == "snapshots" else folder


def check_paths(table: datasets.Dataset, column: str, roots: Sequence[Path], where: str) -> None:
    """Check the files that rows name instead of holding an image. Args: roots: where they may lie.

    Raises: UserError: a row names another one.
    """
    import pyarrow.compute as pc

    column_values: Any = table.data.column(column)
    without_bytes = pc.is_null(pc.struct_field(column_values, "bytes"))  # pyright: ignore[reportAttributeAccessIssue]
    paths = pc.struct_field(column_values, "path").filter(without_bytes)  # pyright: ignore[reportAttributeAccessIssue]
    inside = tuple(f"{root}{os.sep}" for root in roots)
    for path in paths.to_pylist():
        # Links below the roots are checked; to resolve each of a million paths would take minutes.
        if path is not None and not os.path.abspath(path).startswith(inside):  # noqa: PTH100
            raise UserError(f"{where}: a row names the file {path}, outside of the set")


def _patterns(card: Path) -> Iterator[str]:
    """What the card's `configs` say about files."""
    text = card.read_text(encoding="utf-8", errors="replace")
    _, _, rest = text.partition("---\n") if text.startswith("---") else ("", "", "")
    header = rest.partition("\n---")[0]
    try:
        if (problem := find_excess(header)) is not None:
            raise UserError(f"{card}: its header {problem}")
        values = yaml.safe_load(header)
    except yaml.YAMLError:
        return  # datasets says what is wrong
    if isinstance(values, dict):
        for config in values.get("configs") or ():
            if isinstance(config, dict):
                yield from _texts([config.get("data_files"), config.get("data_dir")])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
