"""Batches of CIFAR-10, cropped, flipped and normalised: the trainer's data path against a per-sample DataLoader.

    python -m benchmarks.image_batches [../shared/data/cifar10]

Both start from decoded images in memory and use the same order, crops and flips. Compared twice: in one process by its
CPU time, and with a thread that prepares batches against worker processes by wall time. About 6 minutes; two dated
files under benchmarks/results/.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.result_file import write_comparison_result
from trainer.bench.compare import compare
from trainer.bench.comparison import Question
from trainer.clock import StepClock
from trainer.data.images.batches import ImageSet, ImageTransform
from trainer.data.images.config import NamedImagesConfig
from trainer.data.images.splits import read_splits
from trainer.data.loaders import StepLoader
from trainer.data.samplers import Share, ShuffledSampler, uniform
from trainer.verbs.bench.loading import Tensors, measured

MEAN, STD, PADDING = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], 4
NUM_IMAGES, BATCH_SIZE, SEED = 10_000, 128, 0
NUM_ROUNDS = 9
GOAL = 2.5
# Added to normalised pixels, whose sum is near 0 otherwise.
OFFSET = 10.0


class PerSampleImages(Dataset[tuple[Tensor, int]]):
    """A usual data set: one image at a time through Pillow. Its random draws are made beforehand, so they cost it
    nothing."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, draws: np.ndarray) -> None:
        self.images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        self.labels, self.draws = labels.tolist(), draws.tolist()
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row, column, mirror = self.draws[index]
        image = Image.fromarray(self.images[index])
        if mirror < 0.5:
            image = ImageOps.mirror(image)
        padded = ImageOps.expand(image, PADDING)
        top, left = int(row * (2 * PADDING + 1)), int(column * (2 * PADDING + 1))
        cut = padded.crop((left, top, left + image.width, top + image.height))
        tensor = torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous().float().div_(255)
        return tensor.sub_(self.mean).div_(self.std), self.labels[index]


class Contest:
    """The same epoch, both ways."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        everything = np.arange(len(pixels))
        self.sampler = ShuffledSampler(len(pixels), BATCH_SIZE, SEED)
        self.ours = ImageSet(torch.from_numpy(pixels), labels, everything, SEED)
        self.transform = ImageTransform(MEAN, STD, PADDING, flip=True)
        self.theirs = PerSampleImages(pixels, labels, uniform(SEED, 0, everything, 3))

    def vectorised(self, prefetch_batches: int) -> Iterator[Tensors]:
        """The trainer's: one gather a batch, one transform."""
        cpu = torch.device("cpu")
        loader = StepLoader(
            self.ours, self.sampler, Share(0, 1), BATCH_SIZE, cpu, prefetch_batches, lambda: (0, 0), StepClock()
        )
        for step in loader:
            (micro,) = step.micro_batches
            yield {"images": self.transform(micro.images, micro.draws) + OFFSET, "labels": micro.labels}

    def per_sample(self, loader: DataLoader[tuple[Tensor, int]]) -> Iterator[Tensors]:
        """torch's DataLoader over Pillow."""
        for images, labels in loader:
            yield {"images": images + OFFSET, "labels": labels}

    def loader(self, num_workers: int) -> DataLoader[tuple[Tensor, int]]:
        """Its workers stay between epochs."""
        order = [batch.tolist() for batch in self.sampler.epoch_batches(0)]
        return DataLoader(self.theirs, batch_sampler=order, num_workers=num_workers, persistent_workers=num_workers > 0)


def load(path: str | None) -> tuple[np.ndarray, np.ndarray, str]:
    """The first images of CIFAR-10's training split, or noise of that shape. Returns: pixels, labels, what they are."""
    if path is None or not Path(path).is_dir():
        draw = np.random.default_rng(SEED)
        pixels = draw.integers(0, 256, (NUM_IMAGES, 3, 32, 32), dtype=np.uint8)
        return pixels, draw.integers(0, 10, NUM_IMAGES), "generated images of CIFAR-10's shape"
    split = read_splits(cifar10(path)).splits["train"]
    return np.array(split.pixels[:NUM_IMAGES]), split.labels[:NUM_IMAGES], "the first images of CIFAR-10"


def cifar10(path: str) -> NamedImagesConfig:
    """CIFAR-10 from a local copy, as conf/data/cifar10.yaml has it."""
    import yaml

    conf = Path(__file__).parents[1] / "conf" / "data" / "cifar10.yaml"
    values = yaml.safe_load(conf.read_text(encoding="utf-8"))
    return NamedImagesConfig(**{**values, "path": path, "revision": None})


def main() -> int:
    """Measure, print and write. Returns: 0 when the goal is met and both give the same images."""
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else None
    pixels, labels, what = load(path)
    contest = Contest(pixels, labels)
    codes = []
    for name, ahead, clock, clock_name in (
        ("one-process", 0, time.process_time, "CPU time of the process"),
        ("two-ahead", 2, time.perf_counter, "wall time, prefetch_batches=2 against num_workers=2"),
    ):
        question = Question(
            "image_batches",
            f"{BATCH_SIZE} images, cropped, flipped and normalised: {what}",
            "batch",
            clock_name,
            "every pixel and label of an epoch, by sums weighted by place",
            1e-6,
        )
        loader, steps = contest.loader(ahead), contest.sampler.num_steps
        sides = {
            "StepLoader, ImageTransform": measured(lambda ahead=ahead: contest.vectorised(ahead), steps, clock),
            "DataLoader, Pillow": measured(lambda loader=loader: contest.per_sample(loader), steps, clock),
        }
        comparison = compare(question, sides, NUM_ROUNDS, f"python -m benchmarks.image_batches {path or ''}".strip())
        codes.append(write_comparison_result(f"image-batches-{name}", comparison, {"DataLoader, Pillow": GOAL}))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
