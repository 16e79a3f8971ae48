import numpy as np
import pytest

from trainer.data.samplers import Share, split_step
from trainer.data.texts.length_sampler import LengthGroupedSampler


def sst2_like_lengths(num_samples: int = 20_000) -> np.ndarray:
    """Tokens a sentence as in SST-2: median 10, mean 13, longest 66."""
    draws = np.random.default_rng(0).gamma(1.5, 7.0, num_samples)
    return np.clip(3 + draws.astype(np.int64), 3, 66)


def padding_fraction(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    return 1 - lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches)


@pytest.mark.parametrize(("num_samples", "global_size"), [(1000, 32), (1024, 32), (7, 32), (1, 1), (999, 1)])
def test_each_sample_exactly_once(num_samples, global_size):
    sampler = LengthGroupedSampler(sst2_like_lengths(num_samples), global_size, 50, seed=3)
    batches = sampler.epoch_batches(2)
    assert len(batches) == sampler.num_steps
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_samples))
    assert sorted(len(batch) for batch in batches)[1:] == [global_size] * (len(batches) - 1)


def test_order_follows_from_seed_and_epoch_alone():
    lengths = sst2_like_lengths(2000)
    first = LengthGroupedSampler(lengths, 16, 20, seed=1)
    again = LengthGroupedSampler(lengths.copy(), 16, 20, seed=1)
    for a, b in zip(first.epoch_batches(4), again.epoch_batches(4), strict=True):
        np.testing.assert_array_equal(a, b)
    other_epoch, other_seed = first.epoch_batches(5), LengthGroupedSampler(lengths, 16, 20, seed=2).epoch_batches(4)
    assert any(not np.array_equal(a, b) for a, b in zip(first.epoch_batches(4), other_epoch, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first.epoch_batches(4), other_seed, strict=True))


def test_padding_stays_under_eight_percent():
    lengths = sst2_like_lengths()
    for global_size in (16, 32, 64, 128):
        grouped = padding_fraction(lengths, LengthGroupedSampler(lengths, global_size, 50, 0).epoch_batches(0))
        plain = padding_fraction(lengths, LengthGroupedSampler(lengths, global_size, 1, 0).epoch_batches(0))
        assert grouped < 0.08 < 0.5 < plain


def test_long_and_short_batches_are_mixed_over_the_epoch():
    lengths = sst2_like_lengths(8000)
    means = np.array([lengths[b].mean() for b in LengthGroupedSampler(lengths, 32, 50, 0).epoch_batches(0)])
    halves = means[: len(means) // 2].mean(), means[len(means) // 2 :].mean()
    assert abs(halves[0] - halves[1]) < 0.2 * means.mean()
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


@pytest.mark.parametrize("num_samples", [600, 8000])
def test_neighbours_change_from_epoch_to_epoch(num_samples):
    sampler = LengthGroupedSampler(sst2_like_lengths(num_samples), 32, 50, 0)

    def neighbours(epoch):
        pairs = (np.stack(np.meshgrid(b, b)).reshape(2, -1) for b in sampler.epoch_batches(epoch))
        return {(int(i), int(j)) for part in pairs for i, j in part.T if i < j}

    first, second = neighbours(0), neighbours(1)
    assert len(first & second) < 0.4 * len(first)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_shares_of_a_step_have_similar_lengths(world_size):
    lengths = sst2_like_lengths()
    sampler = LengthGroupedSampler(lengths, 64, 50, 0)
    widths, tokens = [], []
    for batch in sampler.epoch_batches(0):
        parts = [split_step(batch, Share(rank, world_size), 64)[0].indices for rank in range(world_size)]
        widths.append([lengths[part].max() for part in parts])
        tokens.append([lengths[part].sum() for part in parts])
    per_step = np.array(widths)
    # A step takes as long as its widest part: what the ranks wait for is that above the mean.
    assert per_step.max(axis=1).sum() < 1.05 * per_step.mean(axis=1).sum()
    load = np.array(tokens)
    assert load.max(axis=1).sum() < 1.08 * load.mean(axis=1).sum()
