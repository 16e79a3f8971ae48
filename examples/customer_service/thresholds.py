"""From which scores on an answer is given: chosen on held-out questions, for a precision of all answers together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

CONFIDENCE = 0.95  # of the lower bound


@dataclass(frozen=True)
class Judged:
    """N questions whose intents are known, each as an array (N,).

    confidences: of the most probable intent, 0 where it has no answer. is_intent_right: whether it is the right one.
    scores: of the first answer that retrieval finds, 0 where it finds none. is_first_right: whether it is right.
    """

    confidences: np.ndarray
    is_intent_right: np.ndarray
    scores: np.ndarray
    is_first_right: np.ndarray

    def outcome(self, min_confidence: float, min_score: float) -> tuple[int, int]:
        """(right answers, answers) that two thresholds give."""
        is_sure, is_found = self.confidences >= min_confidence, self.scores >= min_score
        is_right = np.where(is_sure, self.is_intent_right, self.is_first_right)
        return int(is_right[is_sure | is_found].sum()), int((is_sure | is_found).sum())


def lower_bound(right: ArrayLike, total: ArrayLike) -> np.ndarray:
    """One-sided Clopper-Pearson bound of shares: the true one is above it with CONFIDENCE; 0 where none is right."""
    bounds = beta.ppf(1 - CONFIDENCE, right, np.subtract(total, right) + 1)
    return np.where(np.equal(right, 0), 0.0, bounds)


@dataclass(frozen=True)
class Thresholds:
    """Each is infinite where none keeps the precision.

    min_confidence: of an intent. min_score: of what retrieval finds for the other questions: similarity, or the
    matcher's probability. min_added_score: the same for an answer that was added after training, of which the
    classifier knows nothing.
    """

    min_confidence: float
    min_score: float
    min_added_score: float


def choose_thresholds(held_out: Judged, precision: float) -> Thresholds:
    """Each threshold as low as the precision allows: of the intents; of these and retrieval; of retrieval by itself."""

    def by_confidence(each: float) -> tuple[int, int]:
        return held_out.outcome(each, math.inf)

    min_confidence = _lowest(held_out.confidences, by_confidence, precision)
    return Thresholds(
        min_confidence,
        _lowest(held_out.scores, lambda each: held_out.outcome(min_confidence, each), precision),
        _lowest(held_out.scores, lambda each: held_out.outcome(math.inf, each), precision),
    )


def _lowest(scores: np.ndarray, outcome: Callable[[float], tuple[int, int]], precision: float) -> float:
    """The lowest threshold whose share of right answers has its lower bound at the precision.

    The bound and not the share itself, since the lowest of many thresholds is also the luckiest one.
    """
    candidates = np.unique(scores)
    right, answered = np.array([outcome(float(score)) for score in candidates]).T
    kept = candidates[lower_bound(right, answered) >= precision]
    return float(kept.min()) if len(kept) else math.inf
