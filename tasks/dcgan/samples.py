"""Grids of samples from fixed noise during training, and a warning on collapse."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tasks.dcgan.config import DCGANConfig
from tasks.dcgan.pictures import over_time, save_grid
from trainer.collectives import decide_on_rank_0
from trainer.data.batch import StepBatch
from trainer.observe.images import log_image

log = logging.getLogger(__name__)

FLAT_STD = 2.0  # grey levels; standard deviation over samples below which they are almost one image
CERTAIN = 0.99  # probability; a discriminator this certain gives the generator almost no gradient
NUM_WINDOWS = 3  # consecutive windows with a symptom before the warning


class SampleGrids(pl.Callback):
    """Writes samples/step-*.png at a cadence, and from them at the end strip.png and animation.gif.

    Args: size: side of an image, pixels. draw: gives the images (N, C, H, W) uint8 of a grid; called on all ranks.
    """

    def __init__(self, task: DCGANConfig, size: int, draw: Callable[[], Tensor]) -> None:
        self.every_n_steps, self.size, self.draw = task.sample_every_n_steps, size, draw
        self.flat_grids = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the first grid; after a resume also a grid that was due when the run was stopped."""
        if trainer.global_step % self.every_n_steps == 0 and self._missing(trainer):
            self._write(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a grid at the cadence; warn when all samples stay alike."""
        if trainer.global_step % self.every_n_steps:
            return
        spread = self._write(trainer)
        self.flat_grids = self.flat_grids + 1 if spread < FLAT_STD else 0
        if self.flat_grids == NUM_WINDOWS and trainer.is_global_zero:
            alike = f"all samples are almost one image (they differ by {spread:.1f} grey levels)"
            _warn(trainer, f"{alike} in {NUM_WINDOWS} consecutive grids")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last grid, the strip and the animation."""
        if self._missing(trainer):
            self._write(trainer)
        if trainer.is_global_zero:
            over_time(_grid_path(trainer).parent, self.size)
            log_image(trainer, _grid_path(trainer).parent / "strip.png")

    def _missing(self, trainer: pl.Trainer) -> bool:
        """Whether there is no grid of this step, as rank 0 sees it: drawing one is collective."""
        return decide_on_rank_0(lambda: not _grid_path(trainer).exists())

    def _write(self, trainer: pl.Trainer) -> float:
        """Returns: standard deviation over the samples, averaged over pixels, in grey levels."""
        images = self.draw()
        if trainer.is_global_zero:
            path = _grid_path(trainer)
            save_grid(images, path)
            log_image(trainer, path)
        return images.float().std(0, unbiased=False).mean().item()


class CollapseWarning(pl.Callback):
    """Warns when the discriminator stays certain of everything. Args: window_steps: steps that are averaged over."""

    def __init__(self, window_steps: int) -> None:
        self.window_steps = window_steps
        self.sums: Tensor | None = None
        self.num_samples = self.certain_windows = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch[Any], batch_idx: int
    ) -> None:
        """Sum on the device; check once per window."""
        values = torch.stack([outputs["d_real"], outputs["d_fake_before"]])
        self.sums = values if self.sums is None else self.sums + values
        self.num_samples += sum(micro.num_valid for micro in batch.micro_batches)
        if trainer.global_step % self.window_steps == 0:
            self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        assert self.sums is not None
        real, fake = (self.sums / max(1, self.num_samples)).tolist()
        self.sums, self.num_samples = None, 0
        certain = (real > CERTAIN and fake < 1 - CERTAIN) or min(real, fake) > CERTAIN or max(real, fake) < 1 - CERTAIN
        self.certain_windows = self.certain_windows + 1 if certain else 0
        if self.certain_windows == NUM_WINDOWS and trainer.is_global_zero:
            steps = NUM_WINDOWS * self.window_steps
            _warn(
                trainer, f"D(x)={real:.3f} and D(G(z))={fake:.3f} for {steps} steps: the generator has stopped learning"
            )


def _grid_path(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:08d}.png"


def _warn(trainer: pl.Trainer, reason: str) -> None:
    message = f"warning: training may have collapsed at step {trainer.global_step}: {reason}"
    print(message, file=sys.stderr)
    log.warning(message)
