"""The SQLite file of the application: answers by intent, their questions, and the log of what was asked.

Embeddings are kept by model, since a running service and a retraining may use the file at the same time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from examples.customer_service.decision import Decision

FILE = "answers.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (intent TEXT PRIMARY KEY, answer TEXT NOT NULL, version INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS questions (
    id INTEGER PRIMARY KEY, question TEXT NOT NULL UNIQUE COLLATE NOCASE, intent TEXT NOT NULL,
    is_added INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS embeddings (
    id INTEGER NOT NULL REFERENCES questions ON DELETE CASCADE, model TEXT NOT NULL, embedding BLOB NOT NULL,
    PRIMARY KEY (id, model)
) STRICT;
CREATE TABLE IF NOT EXISTS log (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ')), question TEXT NOT NULL,
    route TEXT NOT NULL, intent TEXT NOT NULL, confidence REAL NOT NULL, similarity REAL NOT NULL, correction TEXT
) STRICT;
"""
WAIT_S = 30.0


class Database:
    """Every call opens a connection of its own, so that any thread may make it; a write is one transaction."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with self.transaction() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            for statement in SCHEMA.split(";"):
                connection.execute(statement)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are kept together, or not at all if an exception leaves the block."""
        with closing(sqlite3.connect(self.file, timeout=WAIT_S)) as connection, connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys=ON")
            yield connection

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """The rows of a query."""
        with self.transaction() as connection:
            return [dict(row) for row in connection.execute(query, values)]

    def add_to_log(self, question: str, decision: Decision) -> int:
        """Write down a question and what was done with it. Returns: its number."""
        values = (question, decision.route, decision.intent, decision.confidence, decision.similarity)
        with self.transaction() as connection:
            columns = "INSERT INTO log (question, route, intent, confidence, similarity) VALUES (?, ?, ?, ?, ?)"
            number = connection.execute(columns, values).lastrowid
        assert number is not None
        return number

    def correct(self, number: int, intent: str) -> bool:
        """Say which intent a question of the log really has. Returns: whether the log has it."""
        with self.transaction() as connection:
            done = connection.execute("UPDATE log SET correction = ? WHERE id = ?", (intent, number))
            return done.rowcount == 1
