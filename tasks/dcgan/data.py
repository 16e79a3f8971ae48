"""Real images and the noise that goes with them, gathered together ahead of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.dcgan.config import DCGANConfig, DCGANModel
from tasks.dcgan.noise import Stream, normal
from trainer.config.schema import Config
from trainer.data.batch import MicroBatch
from trainer.data.images.batches import ImageSet
from trainer.data.images.module import ImageDataModule
from trainer.data.samplers import uniform

SCORED_SEED = 0  # not the run's seed: runs with different seeds are compared with the same images


@dataclass
class GanBatch(MicroBatch):
    """What D discriminator steps on the same rows need, the last of which the generator's step shares.

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

    The images of further discriminator steps are those of the first one moved on by an offset that each epoch draws,
    so each step's sequence of batches shows every image once an epoch.
    """

    def __init__(self, images: ImageSet, latent_size: int, seed: int, discriminator_steps: int) -> None:
        self.images, self.latent_size, self.seed = images, latent_size, seed
        self.discriminator_steps = discriminator_steps

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> GanBatch:
        """See Gatherable."""
        steps = range(self.discriminator_steps)
        real = [self.images.gather(self._moved_on(indices, epoch, step), num_valid, epoch) for step in steps]
        noise = [normal(self.seed, epoch, indices, self.latent_size, Stream.TRAINING + step) for step in steps]
        return GanBatch(
            indices=torch.from_numpy(indices),
            num_valid=num_valid,
            epoch=epoch,
            images=torch.stack([batch.images for batch in real]),
            draws=torch.stack([batch.draws for batch in real]),
            noise=torch.from_numpy(np.stack(noise)),
        )

    def _moved_on(self, indices: np.ndarray, epoch: int, step: int) -> np.ndarray:
        if step == 0:
            return indices
        draw = uniform(self.seed, epoch, np.array([step]), 1, Stream.REAL_IMAGES).item()
        return (indices + int(draw * len(self))) % len(self)


class ScoredImages:
    """A fixed choice of training images, each with noise of its own. It is a Gatherable of ScoreBatch."""

    def __init__(self, images: ImageSet, num_scored: int, latent_size: int, seed: int) -> None:
        order = np.random.default_rng(SCORED_SEED).permutation(len(images))
        self.images, self.chosen = images, np.sort(order[:num_scored])
        self.latent_size, self.seed = latent_size, seed

    def __len__(self) -> int:
        return len(self.chosen)

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> ScoreBatch:
        """See Gatherable."""
        noise = torch.from_numpy(normal(self.seed, 0, indices, self.latent_size, Stream.SCORE))
        pixels = self.images.pixels(self.chosen[indices])
        return ScoreBatch(torch.from_numpy(indices), num_valid, epoch, pixels, noise)


class DCGANData(ImageDataModule):
    """Any set of images, without its labels.

    Images held out of the training split are trained on as well: distances are taken to training images, as is usual
    for GANs. A set's own test split is left alone.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not isinstance(config.task, DCGANConfig) or not isinstance(config.model, DCGANModel):
            raise TypeError("the task and model nodes are not DCGAN's")
        self.task, self.model = config.task, config.model

    def load(self, device: torch.device) -> None:
        """See DataModule."""
        super().load(device)
        images = self._all_training_images()
        seed, latent_size = self.config.seed, self.model.latent_size
        self.sets = {
            "train": GanImages(images, latent_size, seed, self.task.discriminator_steps),
            "val": ScoredImages(images, self.task.num_scored, latent_size, seed),
        }

    def describe(self) -> Mapping[str, object]:
        """See DataModule."""
        labelled = ("test", "classes", "mean", "std")
        facts = {key: value for key, value in super().describe().items() if key not in labelled}
        own = {
            "train": f"{len(self.sets['train']):,} images, the whole training split, without labels",
            "val": f"{len(self.sets['val']):,} of them, for scores",
        }
        return {**facts, **own}

    def _all_training_images(self) -> ImageSet:
        train, held_out = self.sets["train"], self.sets["val"]
        if not isinstance(train, ImageSet) or not isinstance(held_out, ImageSet):
            raise TypeError("image sets are expected")
        if held_out.images is not train.images:
            return train
        rows = torch.cat([train.rows, held_out.rows]).sort().values.numpy()
        return ImageSet(train.images, np.zeros(len(train.images), dtype=np.int64), rows, self.config.seed)
