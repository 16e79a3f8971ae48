"""Real images and their noise, gathered together ahead of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.dcgan.config import DCGANConfig, DCGANModel
from tasks.dcgan.noise import Stream
from trainer.config.schema import Config
from trainer.data.batch import Gatherable, MicroBatch
from trainer.data.images.batches import ImageSet
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.module import ImageDataModule
from trainer.data.normal import normal
from trainer.data.samplers import uniform

SCORED_SEED = 0  # not the run's seed: runs with different seeds are compared with the same images


@dataclass
class GanBatch(MicroBatch):
    """The inputs of D discriminator steps on the same rows; the generator's step uses those of the last one.

    images (D, B, C, H, W) uint8. draws (D, B, 3) float32: see ImageBatch. noise (D, B, L) float32.
    """

    images: Tensor
    draws: Tensor
    noise: Tensor


@dataclass
class ScoreBatch(MicroBatch):
    """images (B, C, H, W) uint8 to compare with, noise (B, L) float32 to generate from."""

    images: Tensor
    noise: Tensor


class GanImages:
    """Training images with noise. It is a Gatherable of GanBatch.

    Further discriminator steps take the rows of the first one shifted by an offset that is drawn in each epoch, so that
    every one of them sees each image once per epoch.
    """

    def __init__(self, images: ImageSet, latent_size: int, seed: int, discriminator_steps: int) -> None:
        self.images, self.latent_size, self.seed = images, latent_size, seed
        self.discriminator_steps = discriminator_steps

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> GanBatch:
        """Images, draws and noise of the samples at `indices` (B,) int64."""
        steps = range(self.discriminator_steps)
        real = [self.images.gather(self._shifted(indices, epoch, step), num_valid, epoch) for step in steps]
        noise = [normal(self.seed, epoch, indices, self.latent_size, Stream.TRAINING + step) for step in steps]
        return GanBatch(
            indices=torch.from_numpy(indices),
            num_valid=num_valid,
            epoch=epoch,
            images=torch.stack([batch.images for batch in real]),
            draws=torch.stack([batch.draws for batch in real]),
            noise=torch.from_numpy(np.stack(noise)),
        )

    def _shifted(self, indices: np.ndarray, epoch: int, step: int) -> np.ndarray:
        if step == 0:
            return indices
        draw = uniform(self.seed, epoch, np.array([step]), 1, Stream.REAL_IMAGES).item()
        return (indices + int(draw * len(self))) % len(self)


class ScoredImages:
    """A fixed choice of training images, each with its own noise. It is a Gatherable of ScoreBatch."""

    def __init__(self, images: ImageSet, num_scored: int, latent_size: int, seed: int) -> None:
        order = np.random.default_rng(SCORED_SEED).permutation(len(images))
        self.images, self.chosen = images, np.sort(order[:num_scored])
        self.latent_size, self.seed = latent_size, seed

    def __len__(self) -> int:
        return len(self.chosen)

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> ScoreBatch:
        """Images and noise of the samples at `indices` (B,) int64."""
        noise = torch.from_numpy(normal(self.seed, 0, indices, self.latent_size, Stream.SCORE))
        pixels = self.images.pixels(self.chosen[indices])
        return ScoreBatch(torch.from_numpy(indices), num_valid, epoch, pixels, noise)


class DCGANData(ImageDataModule[Config[DCGANConfig, DCGANModel, ImageDataConfig]]):
    """Any set of images, without its labels.

    Images held out of the training split are trained on as well: distances are taken to training images, as is usual
    for GANs. A set's own evaluation splits are not used.
    """

    uses_labels = False

    def build_sets(self, images: Mapping[str, ImageSet]) -> Mapping[str, Gatherable[MicroBatch]]:
        """The whole training split with noise, and the part of it that is scored."""
        train, task = _all_training_images(images), self.config.task
        seed, latent_size = self.config.seed, self.config.model.latent_size
        return {
            "train": GanImages(train, latent_size, seed, task.discriminator_steps),
            "val": ScoredImages(train, task.num_scored, latent_size, seed),
        }

    def describe(self) -> Mapping[str, object]:
        """Facts for the run's record, without those on labels and normalisation."""
        unused = ("test", "classes", "mean", "std")
        facts = {key: value for key, value in super().describe().items() if key not in unused}
        own = {
            "train": f"{len(self.sets['train']):,} images, the whole training split, without labels",
            "val": f"{len(self.sets['val']):,} of them, for scores",
        }
        return {**facts, **own}


def _all_training_images(images: Mapping[str, ImageSet]) -> ImageSet:
    """The training split, with the images that were held out of it."""
    train, held_out = images["train"], images["val"]
    if held_out.images is not train.images:
        return train
    rows = torch.cat([train.rows, held_out.rows]).sort().values.numpy()
    return ImageSet(train.images, np.zeros(len(train.images), dtype=np.int64), rows, train.seed)
