"""Sizes of well-known image sets, known before they are read."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.images.config import ImageDataConfig

# (channels, side, classes, training images, whether the set has an evaluation split), as published.
KNOWN = {
    "digits": (1, 8, 10, 1_797, False),
    "mnist": (1, 28, 10, 60_000, True),
    "fashion_mnist": (1, 28, 10, 60_000, True),
    "cifar10": (3, 32, 10, 50_000, True),
    "cifar100": (3, 32, 100, 50_000, True),
}


@dataclass(frozen=True)
class ImageSizes:
    """shape: (C, H, W) of an input. num_images: of the training split. num_train: those that are trained on where a
    share is held out for evaluation."""

    shape: tuple[int, int, int]
    num_classes: int
    num_images: int
    num_train: int


def known_sizes(data: ImageDataConfig) -> ImageSizes | None:
    """Sizes of a well-known set as configured; None for any other."""
    if data.name not in KNOWN:
        return None
    channels, side, num_classes, count, has_evaluation = KNOWN[data.name]
    held_out = 0 if has_evaluation else min(max(1, round(count * data.eval_fraction)), count - 1)
    side = data.image_size or side
    return ImageSizes((data.channels or channels, side, side), num_classes, count, count - held_out)
