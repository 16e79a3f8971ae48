"""Each sample exactly once, in an order that does not depend on the number of ranks."""

import numpy as np
import pytest

from trainer.data.samplers import Share, ShuffledSampler, evaluation_batches, split_step, uniform


@pytest.mark.parametrize("num_samples", [1, 7, 64, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_takes_each_sample_once_an_epoch(num_samples: int, world_size: int) -> None:
    sampler = ShuffledSampler(num_samples, global_size=12, seed=3)
    batches = sampler.epoch_batches(epoch=5)
    assert len(batches) == sampler.num_steps
    taken: list[int] = []
    for batch in batches:
        parts = [split_step(batch, Share(rank, world_size), micro_size=4) for rank in range(world_size)]
        assert len({len(part) for part in parts}) == 1, "every rank must call the network equally often"
        in_rank_order = [i for part in parts for micro in part for i in micro.indices[: micro.num_valid]]
        assert in_rank_order == batch.tolist()
        taken += in_rank_order
    assert sorted(taken) == list(range(num_samples))


@pytest.mark.parametrize("num_samples", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_takes_each_sample_once_without_duplicates(num_samples: int, world_size: int) -> None:
    ranks = [evaluation_batches(num_samples, Share(rank, world_size), batch_size=4) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    taken = [i for batches in ranks for micro in batches for i in micro.indices[: micro.num_valid].tolist()]
    assert sorted(taken) == list(range(num_samples))


def test_epochs_differ_and_repeat() -> None:
    sampler = ShuffledSampler(50, global_size=10, seed=0)
    first, second = np.concatenate(sampler.epoch_batches(0)), np.concatenate(sampler.epoch_batches(1))
    assert first.tolist() != second.tolist()
    assert first.tolist() == np.concatenate(ShuffledSampler(50, 25, seed=0).epoch_batches(0)).tolist()
    assert first.tolist() != np.concatenate(ShuffledSampler(50, 10, seed=1).epoch_batches(0)).tolist()


def test_uniform_draws_belong_to_the_sample() -> None:
    indices = np.array([9, 2, 40_000_000_000])
    together = uniform(seed=1, epoch=2, indices=indices, num_draws=3)
    assert together.dtype == np.float32
    for row, index in enumerate(indices):
        np.testing.assert_array_equal(together[row], uniform(1, 2, np.array([index]), 3)[0])
    for other in (uniform(2, 2, indices, 3), uniform(1, 3, indices, 3), uniform(1, 2, indices, 3, stream=1)):
        assert not (together == other).any()


def test_uniform_draws_are_uniform_and_independent() -> None:
    draws = uniform(seed=0, epoch=0, indices=np.arange(100_000), num_draws=2).astype(np.float64)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    expected = draws.size / 20
    # Chi-square with 19 degrees of freedom: 43.8 is its 99.9 % point.
    assert ((counts - expected) ** 2 / expected).sum() < 43.8
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.015
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.015


def test_splitmix_against_its_definition() -> None:
    """An independent computation with Python's unbounded integers."""
    mask = 2**64 - 1

    def mix(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    seed, epoch, stream, index, draws = 7, 3, 2, 12345, 4
    key = mix(seed ^ mix(epoch ^ mix(stream)))
    expected = [(mix(mix(index * draws + d) ^ key) >> 40) / 2**24 for d in range(draws)]
    np.testing.assert_array_equal(uniform(seed, epoch, np.array([index]), draws, stream)[0], expected)
