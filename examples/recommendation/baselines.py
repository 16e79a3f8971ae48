"""Rankings that need no training: by popularity, by recent popularity, and by BM25 on the texts."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np

from examples.recommendation.features import MAX_HISTORY


class BM25:
    """Item texts as documents; the texts of the latest items of a history are one query."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.index = bm25s.BM25()
        self.index.index(_words(texts), show_progress=False)

    def scores(self, history: np.ndarray) -> np.ndarray:
        """A score of each item, (I,) float32."""
        query = " ".join(self.texts[int(item)] for item in history[-MAX_HISTORY:])
        (words,) = _words([query])
        return self.index.get_scores(words)


def _words(texts: Sequence[str]) -> list[list[str]]:
    words = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    assert isinstance(words, list)
    return words


def top(scores: np.ndarray, history: np.ndarray, number: int) -> np.ndarray:
    """The items of the largest scores, without those of the history; equal ones in the order of items."""
    allowed = scores.astype(np.float64)
    allowed[history] = -np.inf
    return np.argsort(-allowed, kind="stable")[: min(number, len(scores) - len(np.unique(history)))]
