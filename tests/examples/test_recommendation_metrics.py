"""Measures of ranked lists against independent computations."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from examples.recommendation.metrics import bootstrap, coverage, list_metrics, novelty

K, ITEMS = 10, 50


@pytest.fixture(params=range(5))
def drawn(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(request.param)
    return draw.permutation(ITEMS), draw.choice(ITEMS, size=[1, 3, 12, 2, 20][request.param], replace=False)


def test_ndcg_is_that_of_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    ranked, targets = drawn
    relevance, scores = np.zeros(ITEMS), np.zeros(ITEMS)
    relevance[targets] = 1
    scores[ranked] = np.arange(ITEMS, 0, -1)
    assert list_metrics(ranked, targets, K)["ndcg"] == pytest.approx(ndcg_score([relevance], [scores], k=K))


def test_recall_and_mrr_are_those_of_sets(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    ranked, targets = drawn
    found = list_metrics(ranked, targets, K)
    assert found["recall"] == len(set(ranked[:K]) & set(targets)) / len(set(targets))
    first = next((1 / rank for rank, item in enumerate(ranked[:K], 1) if item in set(targets)), 0.0)
    assert found["mrr"] == first
    # With one target and the whole list, the mean reciprocal rank is the average precision.
    relevance, scores = np.zeros((1, ITEMS)), np.zeros((1, ITEMS))
    relevance[0, targets[0]] = 1
    scores[0, ranked] = np.arange(ITEMS, 0, -1)
    expected = label_ranking_average_precision_score(relevance, scores)
    assert list_metrics(ranked, targets[:1], ITEMS)["mrr"] == pytest.approx(expected)


def test_novelty_and_coverage_of_a_small_case() -> None:
    likes = np.array([7, 3, 1, 0])
    # Of 7 users and one added: 8/8, 4/8, 2/8 and 1/8.
    assert novelty(np.array([0]), likes, num_users=7) == 0.0
    assert novelty(np.array([1, 2, 3]), likes, num_users=7) == pytest.approx((1 + 2 + 3) / 3)
    assert coverage([np.array([0, 1]), np.array([1])], num_items=4) == 0.5


def test_intervals_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=200)
    found = bootstrap(values)
    other = scipy_bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    assert found.mean == pytest.approx(values.mean())
    width = other.confidence_interval.high - other.confidence_interval.low
    assert found.low == pytest.approx(other.confidence_interval.low, abs=0.1 * width)
    assert found.high == pytest.approx(other.confidence_interval.high, abs=0.1 * width)
