"""Files of questions: CSV, JSON lines or Parquet, read into rows of named columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import UserError

SUFFIXES = (".csv", ".jsonl", ".parquet")
# The first name is the documented one; the others are those of public sets.
QUESTION = ("question", "text", "sentence")
INTENT = ("intent", "label")
ANSWER = ("answer",)
# A longer field is an error of the file. Questions over the limit of the data are skipped and counted.
csv.field_size_limit(2**24)


def read_table(file: Path, columns: Mapping[str, Sequence[str]], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a file with the wanted columns as text; a value that is missing is "".

    Args: columns: the names that each column may have. optional: columns that a file may lack.
    Raises: UserError: no such file, another format, no rows, a column is missing, or it cannot be decoded.
    """
    if file.suffix not in SUFFIXES:
        raise UserError(f"data={file}: a file of {', '.join(SUFFIXES)} is expected")
    if not file.is_file():
        raise UserError(f"data={file}: no such file")
    rows = _rows(file)
    if not rows:
        raise UserError(f"data={file}: has no rows")
    found: dict[str, str] = {}
    for column, names in columns.items():
        name = next((name for name in names if name in rows[0]), None)
        if name is not None:
            found[column] = name
        elif column not in optional:
            present = ", ".join(map(str, list(rows[0])[:8]))
            raise UserError(f"data={file}: no column {' or '.join(names)}; it has {present}")
    return [{column: _text(row.get(name)) for column, name in found.items()} for row in rows]


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong = f"data={file}: line {line}: byte {content[error.start]:#04x} is not UTF-8"
        raise UserError(wrong, "convert the file first, for example with: iconv -f cp1252 -t utf-8") from error
    lines = io.StringIO(text, newline="")
    if file.suffix == ".jsonl":
        return list(_json_rows(file, lines))
    try:
        return list(csv.DictReader(lines, strict=True))
    except csv.Error as error:
        raise UserError(f"data={file}: is no CSV file: {error}") from error


def _json_rows(file: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"data={file}: line {number} is no JSON object") from error
        if not isinstance(row, dict):
            raise UserError(f"data={file}: line {number} is no JSON object")
        yield row


def _parquet_rows(file: Path) -> list[dict[str, Any]]:
    """Rows with the names of classes in place of their numbers."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"data={file}: is no Parquet file") from error
    rows = table.to_pylist()
    features = datasets.Features.from_arrow_schema(table.schema)
    for name, feature in features.items():
        if isinstance(feature, datasets.ClassLabel):
            for row in rows:
                row[name] = None if row[name] is None else feature.int2str(row[name])
    return rows
