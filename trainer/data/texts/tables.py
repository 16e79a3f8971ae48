"""Sets of labelled texts as tables with the columns text, text_pair, label and, for text files, line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.cache import build_once, cache_key
from trainer.data.sources import split_fingerprint
from trainer.data.texts.config import CsvFormat, TextDataConfig
from trainer.data.texts.files import Rows, read_rows
from trainer.data.texts.place import row_name
from trainer.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets

TEXT, TEXT_PAIR, LABEL, LINE = "text", "text_pair", "label", "line"
FORMAT = 1  # of a table on disk; part of its key
ROWS_PER_CHUNK = 10_000
TABLE_FILE = "rows.arrow"


@dataclass(frozen=True)
class TextColumns:
    """Columns of a set by name, or by number as text. text: several are joined by a space."""

    text: tuple[str, ...]
    text_pair: str | None
    label: str | None

    @classmethod
    def of(cls, data: TextDataConfig) -> TextColumns:
        """The columns of a configuration."""
        text = data.text if isinstance(data.text, list) else [data.text]
        pair = None if data.text_pair is None else str(data.text_pair)
        return cls(tuple(map(str, text)), pair, str(data.label))

    @property
    def named(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys(c for c in (*self.text, self.text_pair, self.label) if c is not None))

    def texts(self, values: Mapping[str, Any]) -> list[Any]:
        """The text of a row, and that of its pair where there are pairs; see `joined`."""
        texts = [joined([values.get(column) for column in self.text])]
        return texts if self.text_pair is None else [*texts, values.get(self.text_pair)]


def joined(parts: Sequence[Any]) -> Any:
    """Texts of several columns as one, empty ones left out; a part that is no text comes back alone."""
    if len(parts) == 1:
        return parts[0]
    foreign = next((part for part in parts if part is not None and not isinstance(part, str)), None)
    return foreign if foreign is not None else " ".join(part.strip() for part in parts if part and part.strip())


def text_problem(text: Any) -> str | None:
    """Why a value cannot be used as a text; None where it can."""
    if isinstance(text, str):
        return None if text.strip() else "the text is empty"
    return "there is no text" if text is None else f"the text is of type {type(text).__name__}; texts are strings"


def read_table(path: Path, key: str, csv_format: CsvFormat, columns: TextColumns) -> datasets.Dataset:
    """A text file as a table. It is parsed once, by one process, and then mapped from the cache.

    Args: key: of the configuration, for messages.
    Raises: UserError: the file cannot be read, a column is missing, or a row has no text.
    """
    from datasets import Dataset
    from datasets.table import MemoryMappedTable

    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read: {error.strerror or error}") from error
    name = cache_key(FORMAT, digest, path.suffixes, csv_format, columns)
    folder = build_once("tables", name, lambda half: _write_table(half / TABLE_FILE, path, key, csv_format, columns))
    return Dataset(MemoryMappedTable.from_file(str(folder / TABLE_FILE)), fingerprint=name)


def _write_table(target: Path, path: Path, key: str, csv_format: CsvFormat, columns: TextColumns) -> None:
    import pyarrow as pa

    rows = read_rows(path, key, csv_format, columns.named)
    _check_json_columns(rows, columns, f"{key}={path}")
    names = [TEXT, *([TEXT_PAIR] if columns.text_pair is not None else []), LABEL]
    schema = pa.schema([*((name, pa.string()) for name in names), (LINE, pa.int64())])
    checked = _checked_rows(rows, columns, f"{key}={path}")
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        num_rows = 0
        while chunk := list(islice(checked, ROWS_PER_CHUNK)):
            arrays = [
                pa.array(values, field.type) for values, field in zip(zip(*chunk, strict=True), schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            num_rows += len(chunk)
    if num_rows == 0:
        raise UserError(f"{key}={path}: holds no rows")


def _check_json_columns(rows: Rows, columns: TextColumns, where: str) -> None:
    for column in columns.named:
        if rows.columns and column not in rows.columns:
            raise UserError(f"{where}: no column {column} in its first row; {nearest(column, rows.columns)}")


def _checked_rows(rows: Rows, columns: TextColumns, where: str) -> Iterator[tuple[Any, ...]]:
    for row in rows.rows:
        texts = columns.texts(row.values)
        for text in texts:
            problem = text_problem(text)
            if problem is not None:
                raise UserError(row_name(where, row.number, row.line) + f": {problem}", "remove or correct such rows")
        yield *texts, _label_name(row.values.get(columns.label or "")), row.line


def _label_name(value: Any) -> str | None:
    """A label of a file as text: JSON's 1 and 1.0 are the class that CSV calls 1."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if value is None or isinstance(value, str) else str(value)


def arrange_columns(split: datasets.Dataset, columns: TextColumns, where: str) -> datasets.Dataset:
    """A split of a stored set with the columns of the tables here; its label keeps its type.

    Raises: UserError: a column is missing, or a row has no text.
    """
    for column in columns.named:
        if column not in split.column_names:
            raise UserError(f"{where}: no column {column}; {nearest(column, split.column_names)}")
    split = _with_texts(split, columns)
    _check_texts(split, where)
    return split


def _with_texts(split: datasets.Dataset, columns: TextColumns) -> datasets.Dataset:

    wanted = {LABEL: columns.label, TEXT_PAIR: columns.text_pair, TEXT: columns.text[0]}
    names = {column: name for name, column in wanted.items() if column is not None}
    if len(columns.text) == 1:
        return split.select_columns(list(names)).rename_columns({c: n for c, n in names.items() if c != n})
    parts: Iterable[Any] = zip(*(split[column] for column in columns.text), strict=True)
    fingerprint = cache_key(split_fingerprint(split), columns)
    split = split.add_column("joined texts", [joined(p) for p in parts], new_fingerprint=fingerprint)  # pyright: ignore[reportCallIssue]
    names = {column: name for column, name in names.items() if name != TEXT} | {"joined texts": TEXT}
    return split.select_columns(list(names)).rename_columns({c: n for c, n in names.items() if c != n})


def _check_texts(split: datasets.Dataset, where: str) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    table: Any = split.with_format("arrow")[:]
    for name in (TEXT, TEXT_PAIR):
        if name not in split.column_names:
            continue
        values = table[name]
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise UserError(f"{where}: the column of {name} holds {values.type}; texts are strings")
        is_empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), True)  # pyright: ignore[reportAttributeAccessIssue]
        row = pc.index(is_empty, True).as_py()
        if row >= 0:
            text = values[row].as_py()
            raise UserError(f"{row_name(where, row + 1, None)}: {text_problem(text)}", "remove or correct such rows")
