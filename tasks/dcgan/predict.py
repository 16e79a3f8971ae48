"""`predict run=DIR n=64 seed=0`: new images of a trained generator, or walks through its latent space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tasks.dcgan.config import GenerateArguments
from tasks.dcgan.data import DCGANData
from tasks.dcgan.module import DCGANModule
from tasks.dcgan.noise import Stream, normal, walk
from tasks.dcgan.samples import save_grid
from trainer.config.schema import Config

MAX_GRID = 100


def generate(config: Config, module: DCGANModule, data: DCGANData, arguments: GenerateArguments, run_dir: Path) -> None:
    """Write n images, each rank its share, and a grid of the first ones, to samples/ in the run directory."""
    rank, world_size = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    noise = latent_points(arguments, module.model.latent_size)
    kind = f"walk{arguments.interpolate}" if arguments.interpolate else "generated"
    folder = run_dir / "samples" / f"{kind}-seed{arguments.seed}-n{len(noise)}"
    folder.mkdir(parents=True, exist_ok=True)
    share = np.array_split(np.arange(len(noise)), world_size)[rank]
    for start in range(0, len(share), config.batch.eval_size):
        numbers = share[start : start + config.batch.eval_size]
        for number, image in zip(numbers, sample_all(module, noise[numbers]), strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(folder / f"{number:06d}.png")
    if rank == 0:
        columns = arguments.interpolate
        first = noise[: MAX_GRID - MAX_GRID % columns] if columns else noise[:MAX_GRID]
        save_grid(sample_all(module, first), folder / "grid.png", columns)
        print(f"{len(noise)} images and grid.png: {folder}")


def latent_points(arguments: GenerateArguments, latent_size: int) -> np.ndarray:
    """(n, L) float32: n points, or walks one after the other, as many whole ones as n takes and at least one."""
    if arguments.interpolate is None:
        return normal(arguments.seed, 0, np.arange(arguments.n), latent_size, Stream.PREDICT)
    num_walks = max(1, arguments.n // arguments.interpolate)
    ends = normal(arguments.seed, 0, np.arange(2 * num_walks), latent_size, Stream.PREDICT)
    walks = [walk(ends[2 * i], ends[2 * i + 1], arguments.interpolate) for i in range(num_walks)]
    return np.concatenate(walks)


def sample_all(module: DCGANModule, noise: np.ndarray) -> Tensor:
    """Shapes: noise (B, L) -> (B, C, H, W) uint8 on the CPU."""
    return module.sample(torch.from_numpy(noise).to(next(module.parameters()).device)).cpu()
