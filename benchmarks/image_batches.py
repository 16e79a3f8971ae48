"""Batches of CIFAR-10, cropped, flipped and normalised: the trainer's data path against a per-sample DataLoader.

    python -m benchmarks.image_batches [../shared/data/cifar10]

Both start from decoded images in memory and use the same order, crops and flips; the images that they return are
compared first. They are then timed interleaved in one process, so that other load on the machine affects both, and ours
is timed twice a round: the difference between those two is the noise of the ratio. Writes a dated file under
benchmarks/results/.
"""

from __future__ import annotations

import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.result_file import surroundings, write_result
from trainer.clock import StepClock
from trainer.data.images.batches import ImageSet, ImageTransform
from trainer.data.images.config import NamedImagesConfig
from trainer.data.images.splits import read_splits
from trainer.data.loaders import StepLoader
from trainer.data.samplers import Share, ShuffledSampler, uniform

MEAN, STD, PADDING = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], 4
NUM_IMAGES, BATCH_SIZE, SEED = 10_000, 128, 0
NUM_ROUNDS, EPOCHS_A_ROUND = 15, 5
GOAL = 2.5

Batches = Iterator[tuple[Tensor, Tensor]]


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

    def vectorised(self, prefetch_batches: int) -> Batches:
        """The trainer's: one gather a batch, one transform."""
        cpu = torch.device("cpu")
        loader = StepLoader(
            self.ours, self.sampler, Share(0, 1), BATCH_SIZE, cpu, prefetch_batches, lambda: (0, 0), StepClock()
        )
        for step in loader:
            (micro,) = step.micro_batches
            yield self.transform(micro.images, micro.draws), micro.labels

    def per_sample(self, num_workers: int) -> Iterable[tuple[Tensor, Tensor]]:
        """torch's DataLoader over Pillow; its workers stay between epochs."""
        order = [batch.tolist() for batch in self.sampler.epoch_batches(0)]
        return DataLoader(self.theirs, batch_sampler=order, num_workers=num_workers, persistent_workers=num_workers > 0)

    def compare(self) -> float:
        """Largest difference between the two in any pixel of the epoch; labels must be equal."""
        largest = 0.0
        for (ours, labels), (theirs, their_labels) in zip(self.vectorised(0), self.per_sample(0), strict=True):
            assert torch.equal(labels, their_labels)
            largest = max(largest, float((ours - theirs).abs().max()))
        return largest


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
    return NamedImagesConfig(**{**yaml.safe_load(conf.read_text(encoding="utf-8")), "path": path})


def images_per_s(batches: Callable[[], Batches], epochs: int, clock: Callable[[], float]) -> float:
    """Throughput of whole epochs by a clock."""
    start, count = clock(), 0
    for _ in range(epochs):
        count += sum(len(labels) for _, labels in batches())
    return count / (clock() - start)


def contest(
    ours: Callable[[], Batches], theirs: Callable[[], Batches], clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time both in turns, ours twice a round."""
    rates: dict[str, list[float]] = {"ours": [], "theirs": [], "again": []}
    images_per_s(theirs, 1, clock)  # starts the workers
    for _ in range(NUM_ROUNDS):
        rates["ours"].append(images_per_s(ours, EPOCHS_A_ROUND, clock))
        rates["theirs"].append(images_per_s(theirs, 1, clock))
        rates["again"].append(images_per_s(ours, EPOCHS_A_ROUND, clock))
    return rates


def table_row(name: str, rates: dict[str, list[float]]) -> tuple[str, float]:
    """A line of the table, and the median ratio."""
    ratios = [(a + b) / 2 / theirs for a, b, theirs in zip(rates["ours"], rates["again"], rates["theirs"], strict=True)]
    same = sorted(a / b for a, b in zip(rates["ours"], rates["again"], strict=True))
    ratio = statistics.median(ratios)
    ours, theirs = statistics.median(rates["ours"] + rates["again"]), statistics.median(rates["theirs"])
    spread = f"{same[1]:.2f} to {same[-2]:.2f}"
    return f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ratio:.1f} | {min(ratios):.1f} | {spread} |", ratio


def main() -> int:
    """Measure, print and write. Returns: 0 when the goal is met."""
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else None
    pixels, labels, what = load(path)
    both = Contest(pixels, labels)
    difference = both.compare()
    if difference > 1e-6:
        print(f"the two give different images: {difference:.1e}")
        return 1
    contests = [
        ("num_workers=0, CPU time of the process", 0, 0, time.process_time),
        ("num_workers=0, wall time", 0, 0, time.perf_counter),
        ("num_workers=2 against prefetch_batches=2, wall time", 2, 2, time.perf_counter),
    ]
    rows, ratios = [], []
    for name, workers, prefetch_batches, clock in contests:
        loader = both.per_sample(workers)
        rates = contest(lambda p=prefetch_batches: both.vectorised(p), lambda made=loader: iter(made), clock)
        row, ratio = table_row(name, rates)
        print(row, flush=True)
        rows.append(row)
        ratios.append(ratio)
    text = report(what, path, rows, ratios, difference)
    write_result("image-batches", text)
    return 0 if min(ratios) >= GOAL else 1


def report(what: str, path: str | None, rows: list[str], ratios: list[float], difference: float) -> str:
    """The dated file."""
    met = "met" if min(ratios) >= GOAL else "missed"
    return "\n".join(
        [
            f"# Batches of images, {datetime.date.today()}",
            "",
            f"    python -m benchmarks.image_batches{f' {path}' if path else ''}",
            "",
            f"{NUM_IMAGES:,} images ({what}), 3x32x32, batches of {BATCH_SIZE}, window out of a border of {PADDING}",
            f"pixels, mirrored, normalised. {NUM_ROUNDS} rounds in turns; largest difference in any pixel of the epoch",
            f"{difference:.1e}. Goal: {GOAL} times; {met}.",
            "",
            "| contest | ours, images/s | per sample, images/s | ratio, median | ratio, worst round | ours/ours |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "The last column is ours against ours, without the best and the worst round: what a ratio of 1 looks like.",
            "",
            *surroundings("no GPU; torch on one thread", "torch", "datasets", "numpy", "pillow"),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
