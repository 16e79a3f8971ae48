"""The answer base: answers and their questions, searched by nearest neighbours, and changed while it is in use."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from sklearn.neighbors import NearestNeighbors

from examples.customer_service.data import Row
from examples.customer_service.database import Database
from examples.customer_service.decision import Candidate
from examples.customer_service.encoder import Encoder

NUM_NEIGHBOURS = 50  # questions looked at, to find NUM_CANDIDATES distinct intents
NUM_CANDIDATES = 5
INSERT_QUESTION = "INSERT OR REPLACE INTO questions (question, intent, is_added) VALUES (?, ?, ?)"
INSERT_EMBEDDING = """
INSERT OR IGNORE INTO embeddings SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM questions WHERE id = ?1)
"""
EMBEDDED_QUESTIONS = """
SELECT question, intent, embedding FROM questions JOIN embeddings USING (id) JOIN answers USING (intent)
WHERE model = ? ORDER BY id
"""


class Changed(Exception):
    """Somebody else has changed the answer since it was read. The message says what to do."""


class Snapshot:
    """The answer base at one moment; it does not change, so a search needs no lock.

    answers: by intent. questions, intents, rows: of the index, one for each question.
    """

    def __init__(self, answers: Mapping[str, str], questions: Sequence[str], intents: Sequence[str], rows: np.ndarray):
        """Args: rows: (N, H) float32, embeddings of the questions, of length 1."""
        self.answers, self.questions, self.intents, self.rows = answers, questions, np.array(intents), rows
        self.index = NearestNeighbors(metric="cosine", algorithm="brute").fit(rows) if len(rows) else None

    def nearest(self, embedding: np.ndarray, num_candidates: int = NUM_CANDIDATES) -> list[Candidate]:
        """The best candidates of distinct intents for an embedding (H,), the most similar one first."""
        if self.index is None:
            return []
        count = min(NUM_NEIGHBOURS, len(self.questions))
        distances, rows = self.index.kneighbors(embedding[None], n_neighbors=count)
        found: dict[str, Candidate] = {}
        for distance, row in zip(distances[0], rows[0], strict=True):
            intent = str(self.intents[row])
            if intent not in found:
                found[intent] = Candidate(intent, self.answers[intent], self.questions[int(row)], float(1 - distance))
        return list(found.values())[:num_candidates]

    def source_question(self, embedding: np.ndarray, intent: str) -> str | None:
        """The question of an intent that is nearest to an embedding; None where the intent has none."""
        of_intent = np.flatnonzero(self.intents == intent)
        if not len(of_intent):
            return None
        return self.questions[int(of_intent[(self.rows[of_intent] @ embedding).argmax()])]


class AnswerBase:
    """Answers in the database with a snapshot for searching.

    A change is one transaction, after which a new snapshot replaces the old one. Requests that are being answered keep
    theirs.
    """

    def __init__(self, database: Database, encoder: Encoder) -> None:
        self.database, self.encoder = database, encoder
        self.changes = threading.Lock()
        self.snapshot = self._read()

    def put(self, intent: str, answer: str, questions: Iterable[str] = (), version: int | None = None) -> int:
        """Add or replace an answer, and add questions that it answers. A question belongs to the intent named last.

        Args: version: of the answer that was edited, 0 for one that must not exist; None replaces any.
        Returns: the new version. Raises: Changed: it has another version by now.
        """
        with self._change() as connection:
            found = connection.execute("SELECT version FROM answers WHERE intent = ?", (intent,)).fetchone()
            current = 0 if found is None else found["version"]
            if version is not None and version != current:
                raise Changed(f"{intent}: has version {current} by now, not {version}; read it again")
            connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (intent, answer, current + 1))
            connection.executemany(INSERT_QUESTION, [(question, intent, True) for question in questions])
        return current + 1

    def delete(self, intent: str) -> bool:
        """Remove an answer and its questions. Returns: whether it was there."""
        with self._change() as connection:
            connection.execute("DELETE FROM questions WHERE intent = ?", (intent,))
            removed = connection.execute("DELETE FROM answers WHERE intent = ?", (intent,)).rowcount
        return removed == 1

    def replace(self, answers: Mapping[str, str], rows: Iterable[Row]) -> None:
        """Start anew with these answers and the questions that have one."""
        with self._change() as connection:
            connection.execute("DELETE FROM questions")
            connection.execute("DELETE FROM answers")
            connection.executemany("INSERT INTO answers VALUES (?, ?, 1)", answers.items())
            kept = [(row.question, row.intent, False) for row in rows if row.intent in answers]
            connection.executemany(INSERT_QUESTION, kept)

    def add_questions(self, rows: Iterable[Row]) -> None:
        """Add questions to answers that are there."""
        with self._change() as connection:
            kept = [(row.question, row.intent, True) for row in rows if row.intent in self.snapshot.answers]
            connection.executemany(INSERT_QUESTION, kept)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self.changes:
            with self.database.transaction() as connection:
                # Locked before the first read, so that no other process writes in between.
                connection.execute("BEGIN IMMEDIATE")
                yield connection
            self.snapshot = self._read()

    def _read(self) -> Snapshot:
        self._embed_missing()
        with self.database.transaction() as connection:
            connection.execute("BEGIN")  # both queries see one state
            answers = {row["intent"]: row["answer"] for row in connection.execute("SELECT * FROM answers")}
            rows = connection.execute(EMBEDDED_QUESTIONS, (self.encoder.name,)).fetchall()
        embeddings = np.frombuffer(b"".join(row["embedding"] for row in rows), np.float32)
        questions, intents = [row["question"] for row in rows], [row["intent"] for row in rows]
        return Snapshot(answers, questions, intents, embeddings.reshape(-1, self.encoder.width))

    def _embed_missing(self) -> None:
        """Compute the embeddings of questions that this model has not seen."""
        rows = self.database.rows(
            "SELECT id, question FROM questions WHERE id NOT IN (SELECT id FROM embeddings WHERE model = ?)",
            self.encoder.name,
        )
        if not rows:
            return
        embeddings = self.encoder.encode([row["question"] for row in rows]).embeddings
        values = [(row["id"], self.encoder.name, each.tobytes()) for row, each in zip(rows, embeddings, strict=True)]
        with self.database.transaction() as connection:
            # Ignored where a question was deleted in the meantime, or another process was quicker.
            connection.executemany(INSERT_EMBEDDING, values)
