"""Through the real loaders: each sample once, on one rank or several, for any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.clock import StepClock
from trainer.data.images.batches import ImageSet
from trainer.data.loaders import EvaluationLoader, StepLoader
from trainer.data.samplers import Share, ShuffledSampler

CPU = torch.device("cpu")
SIZES = [1, 2, 7, 32, 33]


def numbered(count: int) -> ImageSet:
    return ImageSet(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), np.arange(count), np.arange(count), seed=0)


def train_loader(count: int, share: Share, micro_size: int, epoch: int, done: int = 0) -> StepLoader:
    sampler = ShuffledSampler(count, 12, seed=3)
    return StepLoader(numbered(count), sampler, share, micro_size, CPU, 2, lambda: (epoch, done), StepClock())


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize(("world_size", "micro_size"), [(1, 12), (1, 5), (2, 6), (2, 1), (3, 3)])
def test_training_sees_each_sample_once_an_epoch(count: int, world_size: int, micro_size: int) -> None:
    for epoch in (0, 1):
        ranks = [list(train_loader(count, Share(rank, world_size), micro_size, epoch)) for rank in range(world_size)]
        seen: list[int] = []
        for steps in zip(*ranks, strict=True):
            micros = [micro for step in steps for micro in step.micro_batches]
            real = [label for micro in micros for label in micro.labels[: micro.num_valid].tolist()]
            assert len({len(step.micro_batches) for step in steps}) == 1
            assert all(step.num_samples == len(real) for step in steps)
            assert all(len(micro.labels) >= 1 for micro in micros)
            seen += real
        assert sorted(seen) == list(range(count))


def test_global_batches_do_not_depend_on_the_ranks() -> None:
    def batches(world_size: int) -> list[list[int]]:
        ranks = [list(train_loader(100, Share(rank, world_size), 4, epoch=1)) for rank in range(world_size)]
        return [
            [x for step in steps for micro in step.micro_batches for x in micro.labels[: micro.num_valid].tolist()]
            for steps in zip(*ranks, strict=True)
        ]

    assert batches(1) == batches(2) == batches(3)


def test_epochs_are_in_different_orders_and_resume_where_they_stopped() -> None:
    def order(epoch: int, done: int = 0) -> list[int]:
        steps = train_loader(100, Share(0, 1), 12, epoch, done)
        return [label for step in steps for micro in step.micro_batches for label in micro.labels.tolist()]

    assert order(0) != order(1)
    assert order(1, done=4) == order(1)[48:]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_evaluation_sees_each_sample_once(count: int, world_size: int, batch_size: int) -> None:
    ranks = [
        list(EvaluationLoader(numbered(count), Share(rank, world_size), batch_size, CPU, 2))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [label for batches in ranks for batch in batches for label in batch.labels[: batch.num_valid].tolist()]
    assert sorted(seen) == list(range(count))
