"""Grids of samples from fixed noise during training, a strip and an animation of them, and a warning on collapse."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from tasks.dcgan.config import DCGANConfig
from trainer.collectives import decide_on_rank_0
from trainer.data.batch import StepBatch
from trainer.observe.images import log_image

log = logging.getLogger(__name__)

GAP = 2  # pixels between tiles
STRIP_ROWS, STRIP_COLUMNS = 8, 10
MAX_FRAMES, FRAME_MS = 60, 200
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
            log_image(trainer, "samples/over_time", _grid_path(trainer).parent / "strip.png")

    def _missing(self, trainer: pl.Trainer) -> bool:
        """Whether there is no grid of this step, as rank 0 sees it: drawing one is collective."""
        return decide_on_rank_0(lambda: not _grid_path(trainer).exists())

    def _write(self, trainer: pl.Trainer) -> float:
        """Returns: standard deviation over the samples, averaged over pixels, in grey levels."""
        images = self.draw()
        if trainer.is_global_zero:
            path = _grid_path(trainer)
            save_grid(images, path)
            log_image(trainer, "samples", path)
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


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write images (N, C, H, W) uint8 as one picture, row by row; almost square unless columns are given."""
    columns = columns or grid_columns(len(images))
    path.parent.mkdir(parents=True, exist_ok=True)
    _canvas(list(images.permute(0, 2, 3, 1).numpy()), columns).save(path)


def grid_columns(num_images: int) -> int:
    """Columns of an almost square grid."""
    return int(np.ceil(num_images**0.5))


def over_time(folder: Path, size: int) -> None:
    """Write strip.png (one sample per row, time from left to right) and animation.gif from the grids in a folder.

    They are made from the files, so those of a resumed run are complete. Args: size: side of a tile, pixels.
    """
    grids = sorted(folder.glob("step-*.png"))
    chosen = _evenly([np.asarray(Image.open(path)) for path in grids], STRIP_COLUMNS)
    tiles = [_tiles(grid, size)[:STRIP_ROWS] for grid in chosen]
    rows = min(len(column) for column in tiles)
    _canvas([column[row] for row in range(rows) for column in tiles], len(tiles)).save(folder / "strip.png")
    frames = [Image.open(path) for path in _evenly(grids, MAX_FRAMES)]
    frames[0].save(folder / "animation.gif", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)


def _canvas(tiles: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Tiles (H, W) or (H, W, C) uint8 side by side on black."""
    tiles = [tile.reshape(*tile.shape[:2], -1) for tile in tiles]
    height, width, channels = tiles[0].shape
    rows = -(-len(tiles) // columns)
    canvas = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + GAP), (number % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)


def _tiles(grid: np.ndarray, size: int) -> list[np.ndarray]:
    starts = [range(0, length, size + GAP) for length in grid.shape[:2]]
    return [grid[top : top + size, left : left + size] for top in starts[0] for left in starts[1]]


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spaced, the first and the last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(position)] for position in np.linspace(0, len(items) - 1, count)]


def _grid_path(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:08d}.png"


def _warn(trainer: pl.Trainer, reason: str) -> None:
    message = f"warning: training may have collapsed at step {trainer.global_step}: {reason}"
    print(message, file=sys.stderr)
    log.warning(message)
