"""CSV by Python's `csv`, in its strict mode, which refuses quotes that it would otherwise drop.

What is added: the delimiter, which `csv.Sniffer` guesses wrongly from texts, line numbers in all errors, and a check
that quotes around a text belong to the file's syntax and not to the text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from trainer.data.texts.config import DELIMITERS, CsvFormat
from trainer.data.texts.place import Place, Row
from trainer.errors import UserError, nearest

LONGEST_FIELD = (1 << 31) - 1  # characters; the module's own limit of 131,072 refuses long texts
NULL_WORDS = frozenset({"", "NA", "NULL", "null", "None", "NaN"})


def read_delimited(
    file: TextIO, sample: Sequence[str], place: Place, csv_format: CsvFormat, wanted: Sequence[str]
) -> tuple[Sequence[str], Iterator[Row]]:
    """Columns and rows of a CSV file. Args: sample: its first lines. wanted: columns that it must have.

    Raises: UserError: also while rows are read; a wanted column is missing, or a line is not CSV.
    """
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = csv_format.character or detect_delimiter(sample, csv_format.header, wanted, place.path.suffixes)
    lines = _Lines(file)
    quoting = csv.QUOTE_NONE if csv_format.quoting == "none" else csv.QUOTE_MINIMAL
    records = _records(csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True), place)
    first_line, first = next(records, (1, []))
    if csv_format.header:
        columns = [name.strip() for name in first]
        _check_header(columns, first_line, place, delimiter, wanted, "".join(sample[:1]).rstrip())
        lines.taken.clear()
    else:
        columns = [str(number) for number in range(len(first))]
        _check_numbers(columns, place, wanted)
        records = _again((first_line, first), records)
    check = _QuoteCheck([columns.index(name) for name in wanted], delimiter) if csv_format.quoting is None else None
    return columns, _rows(records, lines, columns, place, check, delimiter)


def detect_delimiter(sample: Sequence[str], header: bool, wanted: Sequence[str], suffixes: Sequence[str]) -> str:
    """The delimiter of a file: the one whose header has the wanted columns, or else whose lines are alike.

    Args: sample: first lines, the last of which may be cut. wanted: names, or numbers where there is no header.
    """
    candidates = sorted(DELIMITERS.values(), key=lambda character: character != "\t" if ".tsv" in suffixes else False)
    best, most = candidates[0], 1
    for candidate in candidates:
        try:
            rows = [row for row in csv.reader(sample[:50], delimiter=candidate) if row]
        except csv.Error:
            continue
        if header and rows and set(wanted) <= {name.strip() for name in rows[0]}:
            return candidate
        widths = [len(row) for row in rows[:-1] or rows]
        if widths and len(set(widths)) == 1 and widths[0] > most:
            best, most = candidate, widths[0]
    return best


class _Lines:
    """The lines of a file, with those of the row that is being read kept as they are."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.taken.append(line)
        return line


def _records(reader: csv._reader, place: Place) -> Iterator[tuple[int, list[str]]]:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownParameterType]
    """(line on which it begins, fields) of each record."""
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = f"{place.prefix}quoting=none takes quotes as text; in CSV a quote inside of quotes is doubled"
            raise place.error(start, f"a quote that CSV does not allow ({error})", remedy) from error
        yield start, fields
        start = reader.line_num + 1


def _again(first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    if first[1]:
        yield first
        yield from rest


def _rows(
    records: Iterator[tuple[int, list[str]]],
    lines: _Lines,
    columns: Sequence[str],
    place: Place,
    check: _QuoteCheck | None,
    delimiter: str,
) -> Iterator[Row]:
    number = 0
    blank: list[int] = []
    for line, fields in records:
        raw = lines.taken.copy()
        lines.taken.clear()
        if not fields:
            # In a file of one column an empty line is an empty text, unless nothing follows it.
            blank += [line] if len(columns) == 1 else []
            continue
        for empty_line in blank:
            number += 1
            yield Row(number, empty_line, {columns[0]: ""})
        blank.clear()
        if len(fields) != len(columns):
            raise _ragged(fields, line, columns, place, delimiter)
        if check is not None:
            check.add(raw, fields, line)
        number += 1
        yield Row(number, line, dict(zip(columns, fields, strict=True)))
    if check is not None:
        check.finish(place)


def _ragged(fields: Sequence[str], line: int, columns: Sequence[str], place: Place, delimiter: str) -> UserError:
    shown = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}.get(delimiter, delimiter)
    if len(fields) == len(columns) + 1 and not fields[-1]:
        return place.error(line, f"ends with a {shown} too many", "remove it, or add one to the header")
    fields_read = f"{len(fields)} field" if len(fields) == 1 else f"{len(fields)} fields"
    keys = f"{place.prefix}delimiter or {place.prefix}quoting"
    remedy = f"put quotes around texts that contain the delimiter, or set {keys}"
    return place.error(line, f"{fields_read}, where {len(columns)} are expected (delimiter: {shown})", remedy)


def _check_header(
    columns: Sequence[str], line: int, place: Place, delimiter: str, wanted: Sequence[str], first_line: str
) -> None:
    for name in wanted:
        if columns.count(name) > 1:
            raise place.error(line, f"{columns.count(name)} columns are called {name}", "rename all but one")
        if name in columns:
            continue
        shown = first_line if len(first_line) <= 60 else first_line[:57] + "..."
        raise UserError(
            f"{place}: no column {name}; {nearest(name, columns)}",
            f"its first line is: {shown}",
            f"another delimiter: {place.prefix}delimiter=semicolon; no header: {place.prefix}header=false data.text=0 "
            "data.label=1",
        )


def _check_numbers(columns: Sequence[str], place: Place, wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in columns:
            last = len(columns) - 1
            raise UserError(
                f"{place}: no column {name}; without a header columns are numbered from 0 to {last}",
                f"use data.text=0 data.label=1, or {place.prefix}header=true where the first line has names",
            )


@dataclass
class _QuoteCheck:
    """Whether quotes around texts belong to the syntax.

    Programs write quotes around all texts, or around those that need them. Where some texts have quotes that they do
    not need and others have none, the quotes are probably part of the text, and reading would drop them.
    """

    positions: Sequence[int]
    delimiter: str
    needless: dict[int, int] = field(default_factory=dict)
    plain: set[int] = field(default_factory=set)

    def add(self, raw: Sequence[str], fields: Sequence[str], line: int) -> None:
        """A row. Args: raw: its lines in the file."""
        if len(raw) != 1:
            return
        pieces = raw[0].rstrip("\r\n").split(self.delimiter)
        if len(pieces) != len(fields):
            return
        for position in self.positions:
            piece = pieces[position]
            if not piece.startswith('"'):
                if piece not in NULL_WORDS:
                    self.plain.add(position)
            elif piece.endswith('"') and not _needs_quotes(piece[1:-1]):
                self.needless.setdefault(position, line)

    def finish(self, place: Place) -> None:
        """Raises: UserError: a column has quotes of both kinds."""
        unclear = [line for position, line in self.needless.items() if position in self.plain]
        if unclear:
            what = "a text in quotes that CSV does not need, while other texts have none"
            key = f"{place.prefix}quoting"
            remedy = f"{key}=none keeps such quotes as text, {key}=minimal drops them"
            raise place.error(min(unclear), what, remedy)


def _needs_quotes(text: str) -> bool:
    specials = {*DELIMITERS.values(), '"', "\r"}
    return text in NULL_WORDS or text != text.strip() or any(character in text for character in specials)
