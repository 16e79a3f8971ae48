"""The schema of text data. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from trainer.config.schema import Count, DataConfig, settings
from trainer.data.sources import path_problems
from trainer.errors import Problem

# How the first bytes of a file give its format away; a CSV file has no mark of its own.
PARQUET_MARK = b"PAR1"
SUFFIXES = {"csv": (".csv", ".tsv"), "jsonl": (".jsonl", ".json"), "parquet": (".parquet",)}


@settings
class TextDataConfig(DataConfig):
    """Labelled sentences, or pairs of sentences."""

    text: str
    """Column of the sentence, or of the first of two."""
    text_pair: str | None
    """Column of the second sentence; null where there is one."""
    label: str
    """Column of the class or score."""
    max_length: Count
    """Longest text in tokens, special ones included; longer ones are cut and counted."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the training split that is held out where there is no validation split."""
    length_pool_batches: Count
    """Global batches that are sorted by length together; 1 shuffles only, more means less padding."""
    pad_to_multiple_of: Count
    """A batch's width in tokens is rounded up to a multiple of this; 8 suits tensor cores."""


@settings
class StoredTextConfig(TextDataConfig):
    """Any set on the hub or in a local directory: what it is depends on where it is."""

    path: str | None
    """Local directory with files named by split as on the hub; null takes the hub."""
    hub_id: str | None
    """owner/name on the hub."""
    subset: str | None
    """Configuration of the set on the hub, or the folder of that name below path."""


@settings
class NamedTextConfig(StoredTextConfig):
    """A well-known set: the same wherever its copy is."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"path"})


@settings
class TextFilesConfig(TextDataConfig):
    """Files of the user, all of the format that the member's name says."""

    train: str | None
    """File with the training split."""
    validation: str | None
    """File with the validation split; null holds out a share of the training split."""
    test: str | None
    """File with the test split; null tests nothing."""


def text_problems(data: DataConfig) -> list[Problem]:
    """What is wrong with where the texts come from, as far as it shows before they are read."""
    if isinstance(data, StoredTextConfig):
        if data.hub_id is None and data.path is None:
            return [Problem("data.hub_id", None, "name a set, as in data.hub_id=OWNER/NAME or data.path=DIRECTORY")]
        return path_problems(data.path)
    if isinstance(data, TextFilesConfig):
        if data.train is None:
            return [Problem("data.train", None, f"name a {data.name} file, as in data.train=FILE")]
        files = {"data.train": data.train, "data.validation": data.validation, "data.test": data.test}
        return [problem for key, path in files.items() if path for problem in _file_problems(key, path, data.name)]
    return []


def _file_problems(key: str, path: str, kind: str) -> list[Problem]:
    place = Path(path).expanduser()
    if not place.is_file():
        return path_problems(path, key) or [Problem(key, path, "is a directory; a file is needed")]
    if place.suffix.lower() not in SUFFIXES[kind]:
        return [Problem(key, path, f"data={kind} reads {' or '.join(SUFFIXES[kind])} files")]
    with place.open("rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
    is_parquet = start.startswith(PARQUET_MARK)
    if is_parquet != (kind == "parquet"):
        return [Problem(key, path, "holds Parquet" if is_parquet else "holds no Parquet, whatever its name says")]
    if kind == "jsonl" and not start.startswith(b"{"):
        return [Problem(key, path, 'holds no JSON lines, each as in {"text": ..., "label": ...}')]
    return []
