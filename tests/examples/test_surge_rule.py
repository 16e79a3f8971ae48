"""The rule of an alert: its p-value by enumeration, its false alarms by simulation, its estimate of the size."""

import numpy as np
import pytest
from scipy import stats

from examples.sentiment_monitor.settings import DEFAULT, read_settings
from examples.sentiment_monitor.surge import SurgeRule, estimated_size

RULE = SurgeRule(false_alarm_rate=0.005, size=8.0, history_windows=24, min_count=1)
MEAN = 4.0
NUM_STREAMS = 200_000


def enumerated_p_value(rule: SurgeRule, count: int, past: int, mean: float) -> float:
    """P(X >= count | X + S = count + past) from the two negative-binomial distributions, for any mean."""
    total = count + past
    window = stats.nbinom(rule.size, rule.size / (rule.size + mean))
    history = stats.nbinom(rule.history_windows * rule.size, rule.size / (rule.size + mean))
    joint = [window.pmf(x) * history.pmf(total - x) for x in range(total + 1)]
    return sum(joint[count:]) / sum(joint)


@pytest.mark.parametrize(("count", "past"), [(1, 0), (5, 40), (12, 96), (30, 96)])
def test_the_p_value_is_that_of_the_enumeration_for_any_mean(count: int, past: int) -> None:
    for mean in (0.7, 6.0):
        assert RULE.p_value(count, past) == pytest.approx(enumerated_p_value(RULE, count, past, mean), rel=1e-6)


def test_the_threshold_is_the_smallest_count_that_is_rare_enough() -> None:
    for past in (0, 3, 96, 700):
        threshold = RULE.threshold(past)
        assert RULE.p_value(threshold, past) <= RULE.false_alarm_rate
        assert threshold == 1 or RULE.p_value(threshold - 1, past) > RULE.false_alarm_rate


def measured_false_alarms(rule: SurgeRule, size: float, seed: int) -> int:
    """Of NUM_STREAMS quiet streams, those with an alert in the window after the history."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(size, MEAN / size, (NUM_STREAMS, rule.history_windows + 1))
    counts = rng.poisson(rates)
    past, last = counts[:, :-1].sum(1), counts[:, -1]
    thresholds = np.array([rule.threshold(each) for each in range(past.max() + 1)])
    return int((last >= thresholds[past]).sum())


def test_quiet_streams_have_the_computed_rate_of_false_alarms() -> None:
    computed = RULE.computed_rate(MEAN)
    assert 0 < computed <= RULE.false_alarm_rate
    low, high = stats.binom(NUM_STREAMS, computed).ppf([0.0005, 0.9995])
    assert low <= measured_false_alarms(RULE, RULE.size, seed=0) <= high
    # A stream that varies more than is assumed: the interval would notice.
    assert measured_false_alarms(RULE, RULE.size / 2, seed=0) > high


def test_the_size_is_found_again() -> None:
    rng = np.random.default_rng(0)
    found = estimated_size(list(rng.negative_binomial(6.0, 6.0 / (6.0 + MEAN), 3000)))
    assert found.low < 6.0 < found.high
    assert found.high < 12
    assert estimated_size(list(rng.poisson(MEAN, 3000))).high == float("inf")


def test_the_rule_that_ships_keeps_its_rate() -> None:
    settings = read_settings(DEFAULT)
    assert settings.rule.computed_rate(4.0) <= settings.false_alarm_rate
    assert settings.false_alarms_per_year == pytest.approx(settings.false_alarm_rate * 5 * 24 * 365)
