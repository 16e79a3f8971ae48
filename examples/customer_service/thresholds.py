"""From which scores on an answer is given: chosen on held-out questions, for a precision of all answers together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

CONFIDENCE = 0.95  # of the lower bound
NUM_TRIED = 101  # values of each threshold


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
    """The thresholds that answer the most held-out questions and keep the precision.

    Kept by the lower bound and not by the share itself, since the best of many thresholds is also the luckiest one. Of
    thresholds that answer as many, the ones with the lowest confidence.
    """

    def chosen(confidences: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
        pairs = [(float(confidence), float(score)) for confidence in confidences for score in scores]
        right, answered = np.array([held_out.outcome(*pair) for pair in pairs]).T
        kept = np.where(lower_bound(right, answered) >= precision, answered, 0)
        return pairs[int(kept.argmax())] if kept.any() else (math.inf, math.inf)

    never, scores = np.array([math.inf]), _possible(held_out.scores)
    min_confidence, min_score = chosen(_possible(held_out.confidences), scores)
    return Thresholds(min_confidence, min_score, chosen(never, scores)[1])


def _possible(scores: np.ndarray) -> np.ndarray:
    """Thresholds to try, the lowest first."""
    return np.append(np.unique(np.quantile(scores, np.linspace(0, 1, NUM_TRIED), method="lower")), math.inf)
