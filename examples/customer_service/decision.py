"""What is decided about a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Route = Literal["intent", "retrieval", "person"]


@dataclass(frozen=True)
class Candidate:
    """An answer that retrieval has found. question: its nearest one. score: cosine similarity, or the matcher's."""

    intent: str
    answer: str
    question: str
    score: float


@dataclass(frozen=True)
class Decision:
    """What happens with a question.

    route: answered by its intent, by a similar question, or handed over. intent: of the answer; for a person the likely
    one. likely: the most probable intent. confidence: its probability. similarity: of the most similar question, 0
    where there is none. candidates: what retrieval has found, the best one first.
    """

    route: Route
    intent: str
    likely: str
    confidence: float
    similarity: float
    candidates: Sequence[Candidate]
