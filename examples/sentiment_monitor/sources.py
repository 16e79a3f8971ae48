"""Records of headlines from CSV, JSON lines, plain lines and RSS or Atom files. Nothing is fetched."""

from __future__ import annotations

import calendar
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import feedparser

from examples.sentiment_monitor.headlines import TEXT_COLUMNS
from trainer import UserError

MAX_FEED_BYTES = 32 * 2**20
# The csv module's own limit is below the length of what has to be skipped with a count.
MAX_FIELD_CHARS = 16 * 2**20
FEEDS = (".xml", ".rss", ".atom")
SUFFIXES = (".csv", ".jsonl", ".txt", *FEEDS)
SNIFFED_BYTES = 4096

Record = dict[str, Any]


def records_of(place: str, stdin: BinaryIO, skipped: Counter[str]) -> Iterator[Record]:
    """Records of a file by its suffix, or of standard input for "-": JSON objects or plain lines.

    Args: skipped: gets what is no record, by reason.
    Raises: UserError: no such file, a format that is not known, no columns, not text, a feed that cannot be read.
    """
    if place == "-":
        yield from _lines(_text_stream(stdin), skipped)
        return
    file = Path(place).expanduser()
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"input={place}: possible are files of {', '.join(SUFFIXES)}, and - for standard input")
    if not file.is_file():
        raise UserError(f"input={place}: no such file")
    if file.stat().st_size == 0:
        raise UserError(f"input={place}: the file is empty")
    with file.open("rb") as stream:
        if file.suffix.lower() in FEEDS:
            yield from _feed(place, stream)
            return
        if b"\0" in stream.peek(SNIFFED_BYTES)[:SNIFFED_BYTES]:
            raise UserError(f"input={place}: is not UTF-8 text; UTF-16 is converted by: iconv -f utf-16 -t utf-8")
        text = _text_stream(stream)
        yield from _csv(place, text) if file.suffix.lower() == ".csv" else _lines(text, skipped)


def _text_stream(stream: BinaryIO) -> io.TextIOWrapper:
    """Bytes that are not UTF-8 become surrogates, by which headlines.py knows the rows to skip."""
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv(place: str, text: io.TextIOWrapper) -> Iterator[Record]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.DictReader(text, strict=True)
    try:
        columns = reader.fieldnames or []
        if not set(columns) & set(TEXT_COLUMNS):
            found = ", ".join(repr(column[:40]) for column in columns[:8])
            raise UserError(f"input={place}: no column headline; it has {found}")
        yield from reader
    except csv.Error as error:
        raise UserError(f"input={place}: line {reader.line_num}: {error}; rows before it are stored") from error


def _lines(text: io.TextIOWrapper, skipped: Counter[str]) -> Iterator[Record]:
    """A line that begins with a brace is a JSON object, any other line is a headline."""
    for line in text:
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            yield {"headline": line}
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            skipped["not JSON"] += 1


def _feed(place: str, stream: BinaryIO) -> Iterator[Record]:
    content = stream.read(MAX_FEED_BYTES + 1)
    if len(content) > MAX_FEED_BYTES:
        raise UserError(f"input={place}: a feed has at most {MAX_FEED_BYTES >> 20} MiB")
    # Entities are how a small file becomes a large one or reads another file. No feed needs a document type. In UTF-16
    # these words would look different, so a feed with NUL bytes is refused as well.
    upper = content.upper()
    if b"<!DOCTYPE" in upper or b"<!ENTITY" in upper or b"\0" in content:
        raise UserError(f"input={place}: feeds with a document type, entities or NUL bytes are refused")
    feed = feedparser.parse(io.BytesIO(content))
    if not feed.entries:
        reason = f": {feed.bozo_exception}" if feed.get("bozo") else ""
        raise UserError(f"input={place}: no RSS or Atom entries{reason}")
    origin = feed.feed.get("title")
    for entry in feed.entries:
        time = entry.get("published_parsed") or entry.get("updated_parsed")
        published = None if time is None else calendar.timegm(time)
        identifier = entry.get("id") or entry.get("link")
        yield {"headline": entry.get("title"), "published": published, "id": identifier, "origin": origin}
