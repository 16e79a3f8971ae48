"""Labelled images, and pairs of them for mixup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.cnn.config import CNNConfig
from trainer.config.schema import Config, ModelConfig
from trainer.data.batch import Gatherable
from trainer.data.images.batches import NUM_DRAWS, ImageBatch, ImageSet
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.module import ImageDataModule
from trainer.data.samplers import uniform
from trainer.errors import UserError

MIXUP_STREAM = 1  # keeps these draws apart from those of crop and flip


class CNNData(ImageDataModule[Config[CNNConfig, ModelConfig, ImageDataConfig]]):
    """Image sets whose images all have a class."""

    def load(self, device: torch.device) -> None:
        """Read the images. Raises: UserError: as in ImageDataModule.load, or the images have no labels."""
        super().load(device)
        if not self.spec.class_names:
            advice = "name a column of classes with data.label_column=COLUMN, or use one folder per class"
            raise UserError(f"{self.facts['source']}: the images have no labels, and task=cnn needs them", advice)

    def build_sets(self, images: Mapping[str, ImageSet]) -> Mapping[str, Gatherable[ImageBatch]]:
        """Pair the training images where mixup is configured."""
        alpha = self.config.task.mixup_alpha
        return {**images, "train": MixupSet(images["train"], alpha)} if alpha > 0 else images


@dataclass
class MixupBatch(ImageBatch):
    """Each image with a partner to blend with.

    partner_images (B, C, H, W) uint8. partner_labels (B,) int64. partner_draws (B, 3) float32. share (B,) float32: of
    the image itself.
    """

    partner_images: Tensor
    partner_labels: Tensor
    partner_draws: Tensor
    share: Tensor


class MixupSet:
    """A training set for mixup (Zhang et al. 2018, equation 1), with partners from the whole set and a share for each
    image, so that a blend does not depend on what else is in the batch. It is a Gatherable of MixupBatch."""

    def __init__(self, images: ImageSet, alpha: float) -> None:
        self.images, self.alpha = images, alpha

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> MixupBatch:
        """The samples at `indices` (B,) int64, each with its partner."""
        from scipy.special import betaincinv

        own = self.images.gather(indices, num_valid, epoch)
        draws = uniform(self.images.seed, epoch, indices, 2 + NUM_DRAWS, MIXUP_STREAM)
        partners = np.minimum((draws[:, 0].astype(np.float64) * len(self)).astype(np.int64), len(self) - 1)
        share = betaincinv(self.alpha, self.alpha, draws[:, 1].astype(np.float64)).astype(np.float32)
        return MixupBatch(
            **vars(own),
            partner_images=self.images.pixels(partners),
            partner_labels=self.images.labels[torch.from_numpy(partners)],
            partner_draws=torch.from_numpy(draws[:, 2:].copy()),
            share=torch.from_numpy(share),
        )
