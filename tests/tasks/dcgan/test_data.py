"""Noise and batches: independent of the number of ranks, different between ranks, and correctly distributed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.dcgan.data import GanImages, ScoredImages
from tasks.dcgan.noise import Stream, walk
from trainer.data.images.batches import ImageSet
from trainer.data.normal import normal
from trainer.data.samplers import Share, ShuffledSampler, evaluation_batches, split_step

NUM_IMAGES, LATENT_SIZE = 103, 11


def images() -> ImageSet:
    """Each image's first pixel is its own number."""
    pixels = torch.arange(NUM_IMAGES, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4)
    return ImageSet(pixels, np.zeros(NUM_IMAGES, dtype=np.int64), np.arange(NUM_IMAGES), seed=3)


def test_noise_is_standard_normal() -> None:
    noise = normal(0, 0, np.arange(4000), 50, Stream.TRAINING).astype(np.float64)
    assert noise.shape == (4000, 50)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert (noise**power).mean() == pytest.approx(moment, abs=0.05)
    correlations = np.corrcoef(noise.T) - np.eye(50)
    assert np.abs(correlations).max() < 5 / 4000**0.5
    assert np.isfinite(noise).all()


def test_noise_depends_on_each_of_its_keys() -> None:
    keys = [(0, 0, 16), (1, 0, 16), (0, 1, 16), (0, 0, 17)]
    draws = [normal(seed, epoch, np.arange(3), 8, stream) for seed, epoch, stream in keys]
    draws.append(normal(0, 0, np.arange(3, 6), 8, 16))
    flat = np.concatenate(draws).flatten()
    assert len(np.unique(flat)) == len(flat)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_together_draw_the_batch_of_one_rank(world_size: int) -> None:
    """103 images in steps of 16: the last step has 7, fewer than 8 ranks."""
    dataset = GanImages(images(), LATENT_SIZE, seed=3, discriminator_steps=2)
    for epoch in (0, 1):
        for indices in ShuffledSampler(NUM_IMAGES, 16, 3).epoch_batches(epoch):
            alone = dataset.gather(indices, len(indices), epoch)
            parts = [
                dataset.gather(micro.indices, micro.num_valid, epoch)
                for rank in range(world_size)
                for micro in split_step(indices, Share(rank, world_size), 3)
            ]
            for name in ("images", "noise", "draws"):
                joined = torch.cat([getattr(part, name)[:, : part.num_valid] for part in parts], dim=1)
                assert torch.equal(joined, getattr(alone, name)), name
            rows = alone.noise.flatten(0, 1)
            assert len(rows.unique(dim=0)) == len(rows)


def test_every_discriminator_step_sees_each_image_once_an_epoch() -> None:
    dataset = GanImages(images(), LATENT_SIZE, seed=3, discriminator_steps=3)
    batches = [dataset.gather(i, len(i), 5) for i in ShuffledSampler(NUM_IMAGES, 16, 3).epoch_batches(5)]
    numbers = torch.cat([batch.images[:, :, 0, 0, 0] for batch in batches], dim=1)
    for step in numbers:
        assert sorted(step.tolist()) == list(range(NUM_IMAGES))
    assert not torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[1], numbers[2])


@pytest.mark.parametrize("world_size", [1, 3])
def test_scored_images_come_once_on_any_number_of_ranks(world_size: int) -> None:
    dataset = ScoredImages(images(), 50, LATENT_SIZE, seed=3)
    assert len(dataset) == 50
    seen: dict[int, torch.Tensor] = {}
    for rank in range(world_size):
        for micro in evaluation_batches(len(dataset), Share(rank, world_size), 7):
            batch = dataset.gather(micro.indices, micro.num_valid, 0)
            for row in range(batch.num_valid):
                assert int(batch.indices[row]) not in seen
                seen[int(batch.indices[row])] = batch.noise[row]
    expected = normal(3, 0, np.arange(50), LATENT_SIZE, Stream.SCORE)
    assert np.array_equal(torch.stack([seen[i] for i in range(50)]).numpy(), expected)


def test_a_walk_stays_on_the_sphere_between_its_ends() -> None:
    start, end = normal(0, 0, np.arange(2), 100, Stream.PREDICT)
    points = walk(start, end, 9)
    np.testing.assert_allclose(points[[0, -1]], [start, end], rtol=1e-5, atol=1e-5)
    norms = np.linalg.norm(points, axis=1)
    assert norms.min() > 0.9 * min(norms[0], norms[-1])
