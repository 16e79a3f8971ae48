"""Measures of ranked lists, and their bootstrap intervals over users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over users, with the bounds of its 95% percentile bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def list_metrics(ranked: np.ndarray, targets: np.ndarray, k: int) -> dict[str, float]:
    """Measures of one list, best first, cut to k items.

    recall: share of the targets in the list. ndcg: gains of 1, discounted by log2(1 + rank), over those of the best
    possible list of k. mrr: 1 / rank of the first target, 0 where none is in the list.
    """
    hits = np.isin(ranked[:k], targets)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = discounts[: len(targets)].sum()
    ranks = np.flatnonzero(hits) + 1
    return {
        "recall": float(hits.sum() / len(targets)),
        "ndcg": float((hits * discounts[: len(hits)]).sum() / best),
        "mrr": float(1 / ranks[0]) if len(ranks) else 0.0,
    }


def novelty(ranked: np.ndarray, likes: np.ndarray, num_users: int) -> float:
    """Mean information of the items of a list in bits: -log2 of the share of users who had each, one user added."""
    return float(-np.log2((likes[ranked] + 1) / (num_users + 1)).mean()) if len(ranked) else 0.0


def coverage(lists: Sequence[np.ndarray], num_items: int) -> float:
    """Share of all items that are in any of the lists."""
    return len(np.unique(np.concatenate(lists))) / num_items


def bootstrap(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of values (U,), one a user; users are resampled with replacement."""
    draw = np.random.default_rng(seed)
    means = values[draw.integers(len(values), size=(NUM_RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Estimate(float(values.mean()), low, high)
