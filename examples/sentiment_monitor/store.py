"""The store: one SQLite file. A batch of headlines, its counts and its alerts are one transaction.

The journal is a write-ahead log with synchronous=FULL: what a call has returned for is on the disk, and a process that
is killed leaves the batches before, whole. Several processes may read and write at once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer import UserError

LOCK_WAIT_S = 30.0
FORMAT = 1
SENTIMENTS = ("positive", "neutral", "negative")
SCHEMA = """
CREATE TABLE store (window_s INTEGER NOT NULL);
CREATE TABLE headlines (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, published_s REAL NOT NULL, start_s INTEGER NOT NULL,
    origin TEXT NOT NULL, topic TEXT NOT NULL, sentiment TEXT NOT NULL, probability REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX headlines_of_a_window ON headlines (topic, start_s);
CREATE TABLE windows (
    topic TEXT NOT NULL, start_s INTEGER NOT NULL,
    positive INTEGER NOT NULL DEFAULT 0, neutral INTEGER NOT NULL DEFAULT 0, negative INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, start_s)
) WITHOUT ROWID;
CREATE INDEX windows_by_time ON windows (start_s);
CREATE TABLE alerts (
    topic TEXT NOT NULL, start_s INTEGER NOT NULL, raised_s REAL NOT NULL, count INTEGER NOT NULL,
    expected REAL NOT NULL, threshold INTEGER NOT NULL, p_value REAL NOT NULL, headlines TEXT NOT NULL,
    PRIMARY KEY (topic, start_s)
) WITHOUT ROWID;
CREATE TABLE deliveries (
    topic TEXT NOT NULL, start_s INTEGER NOT NULL, target TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    next_s REAL NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'waiting', error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (topic, start_s, target)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Scored:
    """A headline with its sentiment and topic.

    start_s: Unix time at which its window begins. probability: of the sentiment.
    """

    key: str
    text: str
    published_s: float
    origin: str
    start_s: int
    topic: str
    sentiment: str
    probability: float


@dataclass(frozen=True)
class Alert:
    """A surge of negative headlines of a topic.

    start_s: Unix time at which the window begins. raised_s: time of the headline that reached the threshold. count:
    negative headlines in the window by then. expected: in a window without a surge. p_value: probability of such a
    count without one. headlines: the texts that were counted, the latest last.
    """

    topic: str
    start_s: int
    raised_s: float
    count: int
    expected: float
    threshold: int
    p_value: float
    headlines: list[str]


class Store:
    """A store of one window length. Raises: UserError: not a store, or one with windows of another length."""

    def __init__(self, file: Path, window_s: int) -> None:
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with self.transaction() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                    _create(db, window_s)
                elif version != FORMAT:
                    raise UserError(f"store={file}: is not a store of this application")
                stored = db.execute("SELECT window_s FROM store").fetchone()["window_s"]
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"store={file}: cannot be opened: {error}") from error
        if stored != window_s:
            raise UserError(f"window_s={window_s}: the store {file} has windows of {stored} s; name another store")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection on which all or nothing is written; other writers wait."""
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                db.execute("ROLLBACK")
                raise

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.file, timeout=LOCK_WAIT_S, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            yield db
        finally:
            db.close()

    def read(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of a query by column."""
        with self._connection() as db:
            return [dict(row) for row in db.execute(query, values)]

    def unknown(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that are not stored."""
        with self._connection() as db:
            found = db.execute(
                "SELECT key FROM headlines WHERE key IN (SELECT value FROM json_each(?))", [json.dumps(keys)]
            )
            return set(keys) - {row["key"] for row in found}

    def series(self) -> list[dict[str, Any]]:
        """Counts of each topic and window by sentiment, in order of time."""
        return self.read("SELECT * FROM windows ORDER BY start_s, topic")

    def headlines_of(self, topic: str, start_s: int) -> list[dict[str, Any]]:
        """The headlines of a topic in a window, in order of time."""
        query = "SELECT * FROM headlines WHERE topic = ? AND start_s = ? ORDER BY published_s, key"
        return self.read(query, topic, start_s)

    def alerts(self) -> list[Alert]:
        """All alerts, in order of time."""
        rows = self.read("SELECT * FROM alerts ORDER BY raised_s, topic")
        return [Alert(**{**row, "headlines": json.loads(row["headlines"])}) for row in rows]

    def undelivered(self) -> list[dict[str, Any]]:
        """Deliveries that wait or were given up."""
        return self.read("SELECT * FROM deliveries WHERE state != 'done' ORDER BY start_s, topic, target")


def _create(db: sqlite3.Connection, window_s: int) -> None:
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {FORMAT}")
    db.execute("INSERT INTO store VALUES (?)", [window_s])


def insert(db: sqlite3.Connection, scored: Scored) -> bool:
    """Store a headline and count it. Returns: whether it is new."""
    values = asdict(scored)
    row = f"INSERT INTO headlines ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})"
    if db.execute(f"{row} ON CONFLICT DO NOTHING", values).rowcount == 0:
        return False
    column = SENTIMENTS[SENTIMENTS.index(scored.sentiment)]  # a column, and nothing else that a model may return
    db.execute(
        f"INSERT INTO windows (topic, start_s, {column}) VALUES (?, ?, 1) "
        f"ON CONFLICT DO UPDATE SET {column} = {column} + 1",
        [scored.topic, scored.start_s],
    )
    return True


def insert_alert(db: sqlite3.Connection, alert: Alert, targets: Sequence[str]) -> None:
    """Store an alert, and that it is to be delivered to each target."""
    values = {**asdict(alert), "headlines": json.dumps(alert.headlines)}
    db.execute(f"INSERT INTO alerts ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})", values)
    for target in targets:
        db.execute(
            "INSERT INTO deliveries (topic, start_s, target) VALUES (?, ?, ?)", [alert.topic, alert.start_s, target]
        )
