"""Interactions and item texts: read from files of the documented form, checked, ordered by user and time."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trainer import UserError

# A DataFrame or a Series. The annotations of pandas lose the type with each selection of rows.
Table = Any
ITEMS, INTERACTIONS = "items.csv", "interactions.csv"
# Characters of an item text; what follows is cut. Encoders read far fewer.
MAX_TEXT = 2000
# 1 January 2100: a later time is one in milliseconds, or an error.
LATEST_S = 4_102_444_800.0


@dataclass(frozen=True)
class Interactions:
    """N interactions, ordered by user, then by time.

    users, items (N,) int64: numbers of users and items. times (N,) float64: seconds since 1970.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def select(self, chosen: np.ndarray) -> Interactions:
        """Those at a mask (N,) bool, in the same order."""
        return Interactions(self.users[chosen], self.items[chosen], self.times[chosen])


@dataclass(frozen=True)
class Catalogue:
    """Items and what users did with them.

    ids, texts: of each item. genres: of each item, empty where the file has none. user_ids: by number of user.
    notes: what was skipped or cut, with counts.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    genres: Sequence[frozenset[str]]
    user_ids: Sequence[str]
    interactions: Interactions
    notes: Sequence[str] = field(default=())


def read_folder(folder: Path) -> Catalogue:
    """Read items.csv and interactions.csv.

    Raises: UserError: a file is missing, empty, not UTF-8 or without a column, or nothing usable is left.
    """
    items = read_csv(folder / ITEMS, ("item", "text"))
    interactions = read_csv(folder / INTERACTIONS, ("user", "item", "time"))
    return catalogue_of(items, interactions, folder)


def read_csv(file: Path, columns: Sequence[str]) -> Table:
    """A CSV file as text, "" where a value is missing. Args: columns: that it must have. Raises: UserError."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            # Read by the csv module: pandas' parsers fail on, or silently skip, rows with too many values.
            csv.field_size_limit(2**31 - 1)
            rows = list(csv.reader(stream, strict=True))
    except FileNotFoundError as error:
        raise UserError(f"path={file.parent}: no {file.name} there") from error
    except OSError as error:
        raise UserError(f"path={file.parent}: {file.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        wrong = f"path={file.parent}: {file.name}: byte {error.start} ({error.object[error.start]:#04x}) is not UTF-8"
        raise UserError(wrong, "convert it first, for example with: iconv -f cp1252 -t utf-8") from error
    except csv.Error as error:
        raise UserError(f"path={file.parent}: {file.name} is no CSV file: {error}") from error
    if len(rows) < 2:
        raise UserError(f"path={file.parent}: {file.name} has no rows")
    header = rows[0]
    missing = [column for column in columns if column not in header]
    if missing:
        has = ", ".join(name[:40] for name in header[:8])
        raise UserError(f"path={file.parent}: {file.name} has no column {', '.join(missing)}; it has {has}")
    width = len(header)
    table = [(row + [""] * width)[:width] for row in rows[1:] if row]
    return pd.DataFrame(table, columns=header, dtype=str)


def catalogue_of(items: Table, interactions: Table, folder: Path) -> Catalogue:
    """Check tables of text, in the columns of the documented form. Args: folder: for messages. Raises: UserError."""
    skipped: Counter[str] = Counter()
    items = _checked_items(items, skipped)
    if items.empty:
        raise UserError(f"path={folder}: no item has an id and a text")
    numbers = {item: number for number, item in enumerate(items["item"])}
    events = _checked_interactions(interactions, numbers, skipped)
    if events.empty:
        raise UserError(f"path={folder}: no interaction is usable", *_notes(skipped)[:2])
    users, user_ids = pd.factorize(events["user"], sort=True)
    order = np.lexsort((events["time"], users))
    backwards = int(((np.diff(users) == 0) & (np.diff(events["time"]) < 0)).sum())
    if backwards:
        skipped["interactions went back in time, and are now in order for each user"] = backwards
    columns = items["genres"] if "genres" in items else [""] * len(items)
    genres = [frozenset(filter(None, map(str.strip, text.split("|")))) for text in columns]
    item_numbers = events["item"].map(numbers).to_numpy(dtype=np.int64)
    ordered = Interactions(users[order], item_numbers[order], events["time"].to_numpy(dtype=np.float64)[order])
    return Catalogue(items["item"].tolist(), items["text"].tolist(), genres, list(user_ids), ordered, _notes(skipped))


def _notes(skipped: Counter[str]) -> list[str]:
    return [f"{count:,} {what}" for what, count in skipped.items() if count]


def _checked_items(items: Table, skipped: Counter[str]) -> Table:
    items = items.assign(item=items["item"].str.strip(), text=items["text"].str.split().str.join(" "))
    empty = (items["item"] == "") | (items["text"] == "")
    skipped["items without an id or a text were skipped"] = int(empty.sum())
    items = items[~empty]
    repeated = items["item"].duplicated()
    skipped["items with the id of an earlier one were skipped"] = int(repeated.sum())
    items = items[~repeated]
    skipped[f"item texts were cut to {MAX_TEXT:,} characters"] = int((items["text"].str.len() > MAX_TEXT).sum())
    return items.assign(text=items["text"].str.slice(0, MAX_TEXT))


def _checked_interactions(events: Table, numbers: dict[str, int], skipped: Counter[str]) -> Table:
    times = seconds_of(events["time"])
    events = events.assign(user=events["user"].str.strip(), item=events["item"].str.strip(), time=times)
    bad = ~((times > 0) & (times < LATEST_S)) | (events["user"] == "")
    skipped["interactions without a user, or a time between 1970 and 2100, were skipped"] = int(bad.sum())
    events = events[~bad]
    unknown = ~events["item"].isin(numbers)
    skipped["interactions with an unknown item were skipped"] = int(unknown.sum())
    events = events[~unknown].sort_values("time", kind="stable")
    repeated = events.duplicated(["user", "item"])
    skipped["interactions that repeat one of the same user and item were skipped"] = int(repeated.sum())
    return events[~repeated].sort_index()


def seconds_of(times: Table) -> Table:
    """Seconds since 1970 of a column of numbers, or of dates as in ISO 8601; NaN where it is neither."""
    numbers: Table = pd.to_numeric(times, errors="coerce")
    dates: Table = pd.to_datetime(times.where(numbers.isna()), errors="coerce", utc=True, format="ISO8601")
    epoch = pd.Timestamp(0, tz="UTC")
    return numbers.fillna((dates - epoch).dt.total_seconds()).astype(np.float64)


def write_folder(catalogue: Catalogue, folder: Path) -> None:
    """Write a catalogue in the documented form."""
    folder.mkdir(parents=True, exist_ok=True)
    genres = ["|".join(sorted(names)) for names in catalogue.genres]
    table = pd.DataFrame({"item": catalogue.ids, "text": catalogue.texts, "genres": genres})
    table.to_csv(folder / ITEMS, index=False)
    events = catalogue.interactions
    users, items = np.asarray(catalogue.user_ids), np.asarray(catalogue.ids)
    table = pd.DataFrame({"user": users[events.users], "item": items[events.items], "time": events.times})
    table.to_csv(folder / INTERACTIONS, index=False)
