"""Candidates for a history, and the features that the ranker weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import MultiLabelBinarizer, normalize

from examples.recommendation.statistics import Statistics

# Latest items of a history that count, as in training (data.max_history counts those of one pair).
MAX_HISTORY = 20
NUM_NEIGHBOURS, NUM_LIKED_WITH, NUM_POPULAR = 200, 200, 100
FEATURES = ("similarity", "nearest", "genres", "liked_with", "popularity", "recency")
OF_TEXT = ("similarity", "nearest")


@dataclass(frozen=True)
class Features:
    """Of C candidates for one history of H items.

    candidates (C,) int64: numbers of items. values (C, features) float64, in the order of FEATURES. nearest (C,) int64:
    the item of the history whose text is most similar. liked_with (C,) int64: the one that was liked together most.
    """

    candidates: np.ndarray
    values: np.ndarray
    nearest: np.ndarray
    liked_with: np.ndarray


class ItemSpace:
    """What is known of items without interactions: vectors (I, D) of length 1 and genres."""

    def __init__(self, vectors: np.ndarray, genres: Sequence[frozenset[str]]) -> None:
        self.vectors = vectors
        # Exact: every vector is compared.
        self.neighbours = NearestNeighbors(n_neighbors=len(vectors), algorithm="brute", metric="cosine").fit(vectors)
        encoded = MultiLabelBinarizer().fit_transform([sorted(names) for names in genres])
        self.genres = np.asarray(normalize(np.asarray(encoded, dtype=np.float64)))

    def user_vector(self, history: np.ndarray) -> np.ndarray:
        """The vector (D,) of a user: the mean of the latest items, as the tower of users computes it."""
        return normalize(self.vectors[history[-MAX_HISTORY:]].mean(0, keepdims=True))[0]

    def most_similar(self, history: np.ndarray, number: int) -> np.ndarray:
        """The items nearest to a user's vector, nearest first, without those of the history."""
        wanted = min(number + len(history), len(self.vectors))
        (found,) = self.neighbours.kneighbors(self.user_vector(history)[None], wanted, return_distance=False)
        return found[~np.isin(found, history)][:number]

    def features(self, history: np.ndarray, statistics: Statistics) -> Features:
        """Candidates for a history, and their features.

        Candidates are the nearest neighbours in the space of texts, the items most liked together with those of the
        history, and the most popular ones of all times and of the last months.
        """
        latest = history[-MAX_HISTORY:]
        liked_with = statistics.liked_with(latest)
        together = liked_with.mean(0)
        found = np.unique(np.concatenate([
            self.most_similar(history, NUM_NEIGHBOURS),
            largest(together, NUM_LIKED_WITH),
            largest(statistics.likes, NUM_POPULAR),
            largest(statistics.recent_likes, NUM_POPULAR),
        ]))  # fmt: skip
        found = found[~np.isin(found, history)]
        to_history = self.vectors[found] @ self.vectors[latest].T
        columns = {
            "similarity": self.vectors[found] @ self.user_vector(history),
            "nearest": to_history.max(1, initial=-1.0),
            "genres": (self.genres[found] @ self.genres[latest].T).mean(1),
            "liked_with": np.sqrt(together[found]),
            "popularity": np.log1p(statistics.likes[found]),
            "recency": np.log1p(statistics.recent_likes[found]),
        }
        values = np.stack([columns[name] for name in FEATURES], axis=1)
        return Features(found, values, latest[to_history.argmax(1)], latest[liked_with[:, found].argmax(0)])


def largest(scores: np.ndarray, number: int) -> np.ndarray:
    """The items of the largest positive scores, largest first; equal ones in the order of items."""
    order = np.argsort(-scores, kind="stable")[:number]
    return order[scores[order] > 0]
