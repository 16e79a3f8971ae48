"""Batches of 8-bit images, and their augmentation and normalisation on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.data.batch import MicroBatch
from trainer.data.images.own_transform import OwnTransform
from trainer.data.samplers import uniform

NUM_DRAWS = 3  # row and column of the window, mirror or not


@dataclass
class ImageBatch(MicroBatch):
    """images (B, C, H, W) uint8. labels (B,) int64, -1 where the set has none. draws (B, 3) float32 in [0, 1): random
    numbers of each image in this epoch, independent of batch and rank."""

    images: Tensor
    labels: Tensor
    draws: Tensor


class ImageSet:
    """A set whose batches are gathered in one vectorised call. It is a Gatherable of ImageBatch.

    Args: images (N, C, H, W) uint8, in memory-mapped, ordinary or GPU memory. labels (N,) int64. rows (M,) int64: the
        positions in `images` that make up this set. seed: of the random draws.
    """

    def __init__(self, images: Tensor, labels: np.ndarray, rows: np.ndarray, seed: int) -> None:
        self.images, self.seed = images, seed
        self.rows = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
        self.labels = torch.from_numpy(labels[rows])

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> ImageBatch:
        """Images, labels and draws of the samples at `indices` (B,) int64."""
        return ImageBatch(
            indices=torch.from_numpy(indices),
            num_valid=num_valid,
            epoch=epoch,
            images=self.pixels(indices),
            labels=self.labels[torch.from_numpy(indices)],
            draws=torch.from_numpy(uniform(self.seed, epoch, indices, NUM_DRAWS)),
        )

    def pixels(self, indices: np.ndarray) -> Tensor:
        """Images (B, C, H, W) uint8 at positions (B,) int64 of this set, on the device where they are kept."""
        rows = self.rows[torch.from_numpy(indices)].to(self.images.device)
        return self.images.index_select(0, rows)  # over 5 times faster on the CPU than images[rows]


class ImageTransform(nn.Module):
    """uint8 images -> a network's input: randomly mirrored, cropped from a black border, and normalised.

    Args: mean, std: per channel, on a scale of 0 to 1. crop_padding: width of the border, pixels. flip: mirror half of
        the images. channels_last: memory order of the result. own: an augmentation of the user's own.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int,
        flip: bool,
        channels_last: bool = False,
        own: OwnTransform | None = None,
    ) -> None:
        super().__init__()
        self.crop_padding, self.flip, self.own = crop_padding, flip, own
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor, draws: Tensor | None) -> Tensor:
        """Args: images (B, C, H, W) uint8. draws (B, 3) float32 in [0, 1), or None for no augmentation.

        Returns: (B, C, H, W) float32, (image / 255 - mean) / std, computed in this order as torchvision does.
        """
        if draws is not None and (self.crop_padding or self.flip):
            images = self._window(images, draws)
        pixels = images.to(torch.float32, memory_format=self.memory_format)
        pixels.div_(255)
        if self.own is not None and draws is not None:
            pixels = self.own(pixels, draws).to(memory_format=self.memory_format)
        return pixels.sub_(self.mean).div_(self.std)

    def _window(self, images: Tensor, draws: Tensor) -> Tensor:
        """Mirror and crop in one gather over the pixels of the padded images."""
        batch, channels, height, width = images.shape
        padding = self.crop_padding
        offsets = (draws[:, :2] * (2 * padding + 1)).long().clamp_(max=2 * padding)
        padded = functional.pad(images, [padding] * 4)
        rows = torch.arange(height, device=images.device) + offsets[:, :1]
        columns = torch.arange(width, device=images.device) + offsets[:, 1:]
        if self.flip:
            columns = torch.where(draws[:, 2:] < 0.5, width + 2 * padding - 1 - columns, columns)
        pixels = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(batch, 1, -1)
        flat = padded.flatten(2).gather(2, pixels.expand(-1, channels, -1))
        return flat.view(batch, channels, height, width)
