"""The schema of text data."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.schema import Count, DataConfig, settings
from trainer.data.sources import path_problems, revision_problems
from trainer.errors import Problem

# The first bytes of a Parquet file; the other formats have no such mark.
PARQUET_MARK = b"PAR1"
ENDINGS = {"csv": (".csv", ".tsv"), "jsonl": (".jsonl", ".json"), "parquet": (".parquet",)}
COMPRESSIONS = (".gz", ".xz", ".zst")
# By name, since a shell, YAML and Hydra each give some of the characters a meaning.
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}

Quoting = Literal["minimal", "none"]


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written. Fields: see CsvConfig."""

    delimiter: str | None = None
    header: bool = True
    quoting: Quoting | None = None
    encoding: str = "utf-8"

    @property
    def character(self) -> str | None:
        """The delimiter itself; None where it is detected."""
        return None if self.delimiter is None else DELIMITERS.get(self.delimiter, self.delimiter)

    def problems(self, prefix: str) -> list[Problem]:
        """What cannot be read like this. Args: prefix: of the keys, such as "data."."""
        problems = []
        if self.character is not None and len(self.character) != 1:
            advice = f"one character, or {', '.join(DELIMITERS)}; null detects it"
            problems.append(Problem(f"{prefix}delimiter", self.delimiter, advice))
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            advice = "no such encoding; common are utf-8, utf-16, cp1252, latin-1, gb18030, shift_jis"
            problems.append(Problem(f"{prefix}encoding", self.encoding, advice))
        return problems


@settings
class TextDataConfig(DataConfig):
    """Labelled sentences, or pairs of sentences."""

    text: str | int | list[str | int]
    """Column of the sentence, or of the first of two; several, as in [title,description], are joined by a space."""
    text_pair: str | int | None
    """Column of the second sentence; null where there is one."""
    label: str | int
    """Column of the class or score."""
    max_length: Count
    """Longest text in tokens, special tokens included; longer texts are cut and counted."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the training split that is held out where there is no validation split."""
    length_pool_batches: Count
    """Global batches that are sorted by length together; 1 shuffles only, more means less padding."""
    pad_to_multiple_of: Count
    """A batch's width in tokens is rounded up to a multiple of this; 8 suits tensor cores."""


@settings
class StoredTextConfig(TextDataConfig):
    """Any set on the hub or in a local directory: what it is depends on where it is."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"sha256"})

    path: str | None
    """Local directory with files named by split as on the hub; null takes the hub."""
    hub_id: str | None
    """owner/name on the hub."""
    subset: str | None
    """Configuration of the set on the hub, or the folder of that name below path."""
    revision: str | None
    """Commit of the set on the hub; null takes the newest."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """SHA-256 of the set's rows, as the message about a wrong one gives it; null accepts any."""


@settings
class NamedTextConfig(StoredTextConfig):
    """A well-known set: the same wherever its copy is."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"path", "revision", "sha256"})


@settings
class TextFilesConfig(TextDataConfig):
    """The user's own files, all of the format of the member's name, also compressed (.gz, .xz, .zst)."""

    train: str | None
    """File with the training split."""
    validation: str | None
    """File with the validation split; null holds out a share of the training split."""
    test: str | None
    """File with the test split; null tests nothing."""


@settings
class EncodedFilesConfig(TextFilesConfig):
    """Text files, which can be in any encoding."""

    encoding: str
    """Encoding of the files' text, by its name in Python."""


@settings
class CsvConfig(EncodedFilesConfig):
    """CSV files."""

    delimiter: str | None
    """Character between columns, or comma, semicolon, tab, pipe; null detects it."""
    header: bool
    """Whether the first line names the columns; without, they are numbered from 0."""
    quoting: Quoting | None
    """minimal: quotes around a text belong to the syntax; none: to the text; null takes minimal and refuses doubt."""


def csv_format(data: DataConfig) -> CsvFormat:
    """How the text files of a data set are written."""
    if isinstance(data, CsvConfig):
        return CsvFormat(data.delimiter, data.header, data.quoting, data.encoding)
    return CsvFormat(encoding=data.encoding) if isinstance(data, EncodedFilesConfig) else CsvFormat()


def file_kind(path: Path) -> str | None:
    """The format of a file by its ending, a compression's left out; None where it is not one that is read."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    kind = next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), None)
    return None if kind == "parquet" and name != path.name.lower() else kind


def text_problems(data: DataConfig) -> list[Problem]:
    """What is wrong with where the texts come from, as far as it shows before they are read."""
    if isinstance(data, StoredTextConfig):
        if data.hub_id is None and data.path is None:
            return [Problem("data.hub_id", None, "name a set, as in data.hub_id=OWNER/NAME or data.path=DIRECTORY")]
        return [*path_problems(data.path), *revision_problems(data.revision, data.path)]
    if isinstance(data, TextFilesConfig):
        problems = [*csv_format(data).problems("data."), *_column_problems(data)]
        if data.train is None:
            return [*problems, Problem("data.train", None, f"name a {data.name} file, as in data.train=FILE")]
        files = {"data.train": data.train, "data.validation": data.validation, "data.test": data.test}
        return problems + [p for key, path in files.items() if path for p in file_problems(key, path, (data.name,))]
    return []


def _column_problems(data: TextFilesConfig) -> list[Problem]:
    if csv_format(data).header:
        return []
    texts = data.text if isinstance(data.text, list) else [data.text]
    columns = [*(("data.text", column) for column in texts), ("data.label", data.label)]
    if data.text_pair is not None:
        columns.append(("data.text_pair", data.text_pair))
    advice = "without a header columns are numbered from 0, as in data.text=0 data.label=1"
    return [Problem(key, column, advice) for key, column in columns if not str(column).isdigit()]


def file_problems(key: str, path: str, kinds: Sequence[str]) -> list[Problem]:
    """What is wrong with a file before it is read. Args: kinds: the formats that it may have."""
    place = Path(path).expanduser()
    if place.is_dir():
        return [Problem(key, path, "is a directory; a file is needed")]
    if not place.exists():
        return path_problems(path, key)
    kind = file_kind(place)
    if kind is None or kind not in kinds:
        endings = [ending for name in kinds for ending in ENDINGS[name]]
        packed = f", also with {', '.join(COMPRESSIONS)}" if set(kinds) != {"parquet"} else ""
        given = f"data={kinds[0]} reads" if len(kinds) == 1 else "possible:"
        return [Problem(key, path, f"{given} {' or '.join(endings)} files{packed}")]
    if place.suffix.lower() in COMPRESSIONS:
        return []
    with place.open("rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        return [Problem(key, path, "the file is empty")]
    is_parquet = start.startswith(PARQUET_MARK)
    if is_parquet != (kind == "parquet"):
        return [Problem(key, path, "holds Parquet" if is_parquet else "holds no Parquet, whatever its name says")]
    if kind == "jsonl" and not start.startswith((b"{", b"[", b"\xff\xfe", b"\xfe\xff")):
        return [Problem(key, path, 'holds no JSON, with rows as in {"text": ..., "label": ...}')]
    return []
