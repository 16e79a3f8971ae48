"""Rows of text files: CSV and JSON, compressed or not, with errors that name the file, the line and a remedy.

`datasets` reads CSV through pandas, which turns "NA", "null" and "None" into missing values, drops quotes that are not
closed as CSV asks for, and numbers no line. `pyarrow.csv` loses line numbers when it reads in parallel. The parsers
here are Python's `csv` and `json`.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from trainer.data.texts.config import COMPRESSIONS, CsvFormat, file_kind
from trainer.data.texts.delimited import read_delimited
from trainer.data.texts.place import Place, Row
from trainer.errors import UserError

NUM_BYTES_TO_DETECT = 1 << 16


@dataclass(frozen=True)
class Rows:
    """Rows of a file in its order. columns: in its order; of a JSON file, those of its first row."""

    columns: Sequence[str]
    rows: Iterator[Row]


def read_rows(path: Path, key: str, csv_format: CsvFormat, wanted: Sequence[str]) -> Rows:
    """Read a file row by row. Its format and compression follow from its ending.

    Args: key: of the configuration or command line, for messages. wanted: columns that a CSV file must have.
    Raises: UserError: also while the rows are read; the file is damaged, is encoded otherwise, or lacks a column.
    """
    place = Place(key, path)
    with _errors_named(place, csv_format.encoding):
        if file_kind(path) == "parquet":
            file, rows = None, _parquet_rows(place)
        else:
            file = open_text(path, csv_format.encoding)
            is_json = file_kind(path) == "jsonl"
            rows = _json_rows(file, place) if is_json else _csv_rows(file, place, csv_format, wanted)
    return Rows(rows.columns, _closing(rows.rows, file, place, csv_format.encoding))


def _closing(rows: Iterator[Row], file: TextIO | None, place: Place, encoding: str) -> Iterator[Row]:
    try:
        with _errors_named(place, encoding):
            yield from rows
    finally:
        if file is not None:
            file.close()


def open_text(path: Path, encoding: str) -> TextIO:
    """A text file, decompressed by its ending; a byte order mark is left out."""
    name = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    stream: Any = open_bytes(path)
    return io.TextIOWrapper(stream, encoding=name, newline="")


def open_bytes(path: Path) -> io.BufferedIOBase:
    """A file, decompressed by its ending."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".xz":
        return lzma.open(path)
    if suffix == ".zst":
        import pyarrow

        stream: Any = pyarrow.input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream)
    return path.open("rb")


def _csv_rows(file: TextIO, place: Place, csv_format: CsvFormat, wanted: Sequence[str]) -> Rows:
    with open_text(place.path, csv_format.encoding) as start:
        sample = start.read(NUM_BYTES_TO_DETECT).splitlines(keepends=True)
    return Rows(*read_delimited(file, sample, place, csv_format, wanted))


def _json_rows(file: TextIO, place: Place) -> Rows:
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    file.seek(0)
    rows = _json_array(file, place) if start == "[" else _json_lines(file, place)
    first = next(rows, None)
    if first is None:
        return Rows([], iter(()))

    def all_rows() -> Iterator[Row]:
        yield first
        yield from rows

    return Rows(list(first.values), all_rows())


def _json_lines(file: TextIO, place: Place) -> Iterator[Row]:
    number = 0
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        number += 1
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise place.error(line, f"no JSON: {error.msg}", 'each line is one object, as in {"text": ...}') from error
        yield Row(number, line, _json_object(value, place, number, line))


def _json_array(file: TextIO, place: Place) -> Iterator[Row]:
    try:
        values = json.load(file)
    except json.JSONDecodeError as error:
        raise place.error(error.lineno, f"no JSON: {error.msg}", "the file begins as a JSON array") from error
    for number, value in enumerate(values, 1):
        yield Row(number, None, _json_object(value, place, number, None))


def _json_object(value: Any, place: Place, number: int, line: int | None) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number")
    raise UserError(f"{place.row(number, line)} is {kind}", 'each row is one object, as in {"text": ...}')


def _parquet_rows(place: Place) -> Rows:
    from pyarrow import parquet

    file = parquet.ParquetFile(place.path)

    def rows() -> Iterator[Row]:
        number = 0
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(number, None, values)

    return Rows(file.schema_arrow.names, rows())


@contextmanager
def _errors_named(place: Place, encoding: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeError as error:
        line, byte = _undecodable(place.path, encoding)
        remedy = "utf-16" if byte in ("0xff", "0xfe") else "cp1252 or latin-1, which are common on Windows"
        raise place.error(
            line, f"byte {byte} is not {encoding}", f"set {place.prefix}encoding, perhaps to {remedy}"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ArrowException) as error:
        ending = place.path.suffix.lower()
        hint = f"its ending says that it is compressed as {ending}" if ending in COMPRESSIONS else "is it complete?"
        raise UserError(f"{place}: cannot be read: {' '.join(str(error).split())[:160]}", hint) from error


def _undecodable(path: Path, encoding: str) -> tuple[int, str]:
    """(line, byte) of the first byte that cannot be decoded; Python's own error counts from its last buffer."""
    with open_bytes(path) as file:
        line = 0
        for line, data in enumerate(file, 1):
            try:
                data.decode(encoding)
            except UnicodeError as error:
                start = error.start if isinstance(error, UnicodeDecodeError) else 0
                return line, f"0x{data[start]:02x}"
    return max(line, 1), "at its end"
