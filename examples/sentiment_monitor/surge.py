"""The statistical rule of an alert: negative headlines of a topic in a window, against the topic's own past windows.

Assumption: the number of negative headlines of a topic in a window is negative-binomial with an unknown mean, the same
in the window and the windows before it, and a known size r; the variance is mean + mean^2 / r. A large r is a Poisson
stream. Counts of different windows are independent. A classifier that errs independently of the window changes the mean
and leaves r as it is.

Then the count x of the window, given the sum x + s of it and the m windows before it, is beta-binomial with the
parameters (x + s, r, m r), whatever the mean is. The upper tail of that distribution is an exact p-value. It needs no
estimate of the mean, so a short history makes the rule cautious and not wrong.

The count of an open window only grows. An alert as soon as it reaches the threshold is therefore the same event as a
threshold reached at the end of the window, and looking after each headline costs no false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, stats

# What the computed rate leaves out of the distribution of the past sum, on each side.
TAIL = 1e-9


@dataclass(frozen=True)
class SurgeRule:
    """When a count of negative headlines is a surge.

    false_alarm_rate: probability of an alert in one window of one topic without a surge, at most. size: r above, of all
    topics. history_windows: m above. min_count: no alert below that many negative headlines.
    """

    false_alarm_rate: float
    size: float
    history_windows: int
    min_count: int

    def p_value(self, count: int, past: int) -> float:
        """Probability of at least this count. Args: past: negative headlines in the history_windows windows before."""
        total, size = count + past, self.size
        counts = np.arange(count, total + 1)
        return float(stats.betabinom.pmf(counts, total, size, self.history_windows * size).sum())

    def threshold(self, past: int) -> int:
        """The smallest count that raises an alert."""
        return _threshold(self, past)

    def expected(self, past: int) -> float:
        """Negative headlines that a window without a surge has on average, as its past says."""
        return past / self.history_windows

    def computed_rate(self, mean: float) -> float:
        """The exact probability of a false alarm in a window. It is at most false_alarm_rate: counts are whole numbers.

        Args: mean: negative headlines a window.
        """
        past = _negative_binomial(self.history_windows * mean, self.history_windows * self.size)
        sums = np.arange(int(past.ppf(TAIL)), int(past.ppf(1 - TAIL)) + 1)
        thresholds = np.array([self.threshold(int(each)) for each in sums])
        return float((past.pmf(sums) * _negative_binomial(mean, self.size).sf(thresholds - 1)).sum())


@lru_cache(maxsize=10_000)
def _threshold(rule: SurgeRule, past: int) -> int:
    low, high = 0, 1
    while rule.p_value(high, past) > rule.false_alarm_rate:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if rule.p_value(middle, past) > rule.false_alarm_rate:
            low = middle
        else:
            high = middle
    return max(high, rule.min_count)


def _negative_binomial(mean: float, size: float) -> Any:
    """A frozen distribution of scipy, which has no types."""
    return stats.nbinom(size, size / (size + mean))


@dataclass(frozen=True)
class SizeEstimate:
    """The size r of a topic by maximum likelihood, with a 95 % profile-likelihood interval.

    mean: negative headlines a window. high: infinite where a Poisson stream is not excluded.
    """

    mean: float
    size: float
    low: float
    high: float


def estimated_size(counts: Sequence[int]) -> SizeEstimate:
    """Fit r to the counts of windows without a surge. Raises: ValueError: no negative headline at all."""
    mean = float(np.mean(counts))
    if mean == 0:
        raise ValueError("there is no negative headline")
    smallest, largest = np.log(1e-2), np.log(1e6)

    def loss(log_size: float) -> float:
        return -float(_negative_binomial(mean, float(np.exp(log_size))).logpmf(counts).sum())

    best: Any = optimize.minimize_scalar(loss, bounds=(smallest, largest), method="bounded")
    limit = best.fun + stats.chi2.ppf(0.95, 1) / 2

    def end(log_size: float, otherwise: float) -> float:
        """The size between the best one and a bound at which the likelihood is at the limit."""
        if loss(log_size) <= limit:
            return otherwise
        low, high = sorted((log_size, best.x))
        root: Any = optimize.brentq(lambda each: loss(each) - limit, low, high)
        return float(np.exp(root))

    return SizeEstimate(mean, float(np.exp(best.x)), end(smallest, 0.0), end(largest, float("inf")))
