"""What a headline is, and which records are none."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_CHARS = 1000
# Clocks differ. A later time would close windows that are still open.
MAX_AHEAD_S = 300.0
EARLIEST_S = datetime.datetime(1990, 1, 1, tzinfo=datetime.UTC).timestamp()
TEXT_COLUMNS = ("headline", "title", "sentence", "text")


class NoHeadline(ValueError):
    """A record that is skipped. The message is the reason under which it is counted."""


@dataclass(frozen=True)
class Headline:
    """key: equal for the same headline, however often it comes. published_s: Unix time. origin: where it is from."""

    key: str
    text: str
    published_s: float
    origin: str


def headline_of(record: Mapping[Any, Any], origin: str, now_s: float) -> Headline:
    """The headline of a record with the fields headline, published, id and origin; all but the first may be missing.

    Without an id the key is a hash of the text and of the time that the record states. A record that states no time is
    published now; it counts as the same headline whenever it comes again.

    Args: origin: of a record that does not state it.
    Raises: NoHeadline: it cannot be used.
    """
    text = _text(next((record[name] for name in TEXT_COLUMNS if record.get(name) is not None), ""))
    stated = record.get("published")
    published_s = now_s if stated in (None, "") else _time_s(stated)
    if published_s > now_s + MAX_AHEAD_S:
        raise NoHeadline("time in the future")
    if published_s < EARLIEST_S:
        raise NoHeadline("time before 1990")
    identifier = record.get("id")
    if identifier in (None, ""):
        identifier = f"{text}\n{'' if stated in (None, '') else published_s}"
    key = hashlib.sha256(_text(identifier, "id").encode()).hexdigest()[:32]
    return Headline(key, text, published_s, _text(record.get("origin") or origin, "origin"))


def _text(value: object, name: str = "headline") -> str:
    """Raises: NoHeadline: not text, empty, or too long."""
    if not isinstance(value, str):
        if name == "id" and isinstance(value, int):
            return str(value)
        raise NoHeadline(f"{name} is not text")
    if any("\ud800" <= c <= "\udfff" for c in value[: 2 * MAX_CHARS]):
        raise NoHeadline("not UTF-8")  # read with errors="surrogateescape"
    text = " ".join("".join(c if c.isprintable() else " " for c in value[: 2 * MAX_CHARS]).split())
    if not text:
        raise NoHeadline(f"no {name}")
    if len(value) > 2 * MAX_CHARS or len(text) > MAX_CHARS:
        raise NoHeadline(f"{name} longer than {MAX_CHARS} characters")
    return text


def _time_s(value: object) -> float:
    """Unix seconds, or an ISO 8601 time; without an offset it is UTC. Raises: NoHeadline."""
    try:
        if isinstance(value, str) and not _is_number(value):
            time = datetime.datetime.fromisoformat(value.strip())
            time = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
            return time.timestamp()
        seconds = float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError) as error:
        raise NoHeadline("time is neither ISO 8601 nor Unix seconds") from error
    if isinstance(value, bool) or not math.isfinite(seconds):
        raise NoHeadline("time is neither ISO 8601 nor Unix seconds")
    return seconds


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
