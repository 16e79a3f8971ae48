"""Cut, mirror and normalise on the device against Pillow, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from trainer.data.images.batches import ImageSet, ImageTransform
from trainer.data.samplers import Share, split_step, uniform

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def pillow(image: np.ndarray, draws: np.ndarray, padding: int, flip: bool) -> np.ndarray:
    """The same as an ordinary per-sample pipeline does it: mirror, pad, cut, scale, normalise."""
    height, width = image.shape[1:]
    picture = Image.fromarray(image.transpose(1, 2, 0))
    if flip and draws[2] < 0.5:
        picture = ImageOps.mirror(picture)
    picture = ImageOps.expand(picture, padding)
    top, left = int(draws[0] * (2 * padding + 1)), int(draws[1] * (2 * padding + 1))
    cut = np.asarray(picture.crop((left, top, left + width, top + height)), dtype=np.float64)
    return ((cut / 255 - MEAN) / STD).transpose(2, 0, 1)


def images(count: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (0, False)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_as_pillow(padding: int, flip: bool, channels_last: bool) -> None:
    batch, draws = images(64), uniform(0, 3, np.arange(64), 3)
    transform = ImageTransform(MEAN, STD, padding, flip, channels_last)
    result = transform(torch.from_numpy(batch), torch.from_numpy(draws))
    expected = np.stack([pillow(image, draw, padding, flip) for image, draw in zip(batch, draws, strict=True)])
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)


def test_without_draws_nothing_is_random() -> None:
    batch = torch.from_numpy(images(4))
    result = ImageTransform(MEAN, STD, 4, True)(batch, None)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(result, (batch / 255 - mean) / std)


def test_every_window_and_both_sides_are_drawn() -> None:
    draws = uniform(0, 0, np.arange(20_000), 3)
    offsets = (draws[:, :2] * 9).astype(int)
    counts = np.bincount(offsets[:, 0] * 9 + offsets[:, 1], minlength=81)
    assert len(counts) == 81
    # Each count is binomial with mean 247 and standard deviation 16.
    assert counts.min() > 247 - 5 * 16
    assert counts.max() < 247 + 5 * 16
    assert abs((draws[:, 2] < 0.5).mean() - 0.5) < 0.02


def test_largest_draw_stays_inside() -> None:
    batch = torch.from_numpy(images(1))
    edge = torch.full((1, 3), 1 - 2.0**-24)
    result = ImageTransform([0.0] * 3, [1.0] * 3, 4, True)(batch, edge)
    assert (result[0, :, -4:] == 0).all()
    torch.testing.assert_close(result[0, :, :-4, :-4], batch[0, :, 4:, 4:] / 255)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_image_looks_the_same_on_any_rank(world_size: int) -> None:
    pixels = torch.from_numpy(images(50))
    dataset = ImageSet(pixels, np.arange(50), np.arange(50), seed=7)
    transform = ImageTransform(MEAN, STD, 4, True)
    order = np.random.default_rng(1).permutation(50)[:31]
    whole = dataset.gather(order, 31, epoch=2)
    expected = transform(whole.images, whole.draws)
    parts = [
        dataset.gather(micro.indices, micro.num_valid, epoch=2)
        for rank in range(world_size)
        for micro in split_step(order, Share(rank, world_size), micro_size=5)
    ]
    result = torch.cat([transform(part.images, part.draws)[: part.num_valid] for part in parts])
    torch.testing.assert_close(result, expected, atol=0, rtol=0)
    assert torch.cat([part.labels[: part.num_valid] for part in parts]).tolist() == order.tolist()


def test_epochs_and_seeds_differ() -> None:
    pixels, indices = torch.from_numpy(images(8)), np.arange(8)
    draws = [
        ImageSet(pixels, indices, indices, seed).gather(indices, 8, epoch).draws for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4


def test_a_set_of_some_rows() -> None:
    pixels = torch.from_numpy(images(10))
    dataset = ImageSet(pixels, np.arange(100, 110), np.array([3, 5, 9]), seed=0)
    batch = dataset.gather(np.array([2, 0]), 2, epoch=0)
    assert len(dataset) == 3
    assert batch.labels.tolist() == [109, 103]
    torch.testing.assert_close(batch.images, pixels[[9, 3]])
