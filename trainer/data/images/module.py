"""The data module of tasks on images: which split is evaluated on, what is held out, where the pixels are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.config.schema import Config
from trainer.data.images.batches import ImageSet, ImageTransform
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.splits import ImageSplit, ImageSplits, read_splits
from trainer.data.module import DataModule
from trainer.errors import UserError

HOLD_OUT_SEED = 0  # not the run's seed: runs with different seeds are compared on the same images


@dataclass(frozen=True)
class Role:
    """What train, val or test is made of: rows (M,) int64 of a split, and a sentence about them for the record."""

    split: str
    rows: np.ndarray
    origin: str


class ImageDataModule(DataModule):
    """Image sets of one run.

    After `load`: sets (train, val and perhaps test), class_names (empty without labels), image_shape (C, H, W), and
    mean and std of the training images per channel, on a scale of 0 to 1, unless they are configured.
    """

    class_names: list[str]
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not isinstance(config.data, ImageDataConfig):
            raise TypeError(f"{type(config.data).__name__} describes no images")
        self.data = config.data
        self.facts: dict[str, object] = {}

    def load(self, device: torch.device) -> None:
        """See DataModule."""
        found = read_splits(self.data)
        roles = assign_roles(found, self.data.eval_fraction)
        train = found.splits[roles["train"].split]
        channels, height, width = train.pixels.shape[1:]
        self.class_names, self.image_shape = list(found.class_names), (channels, height, width)
        self.mean, self.std = self._normalisation(train, roles["train"].rows)
        stores = {name: torch.from_numpy(split.pixels) for name, split in found.splits.items()}
        kept = self._place(stores, device)
        self.sets = {
            name: ImageSet(stores[role.split], found.splits[role.split].labels, role.rows, self.config.seed)
            for name, role in roles.items()
        }
        self.facts = self._facts(found, roles, kept)

    def describe(self) -> Mapping[str, object]:
        """See DataModule."""
        return self.facts

    def transform(self) -> ImageTransform:
        """What makes a network's input of a batch's images."""
        layout = self.config.performance.channels_last
        return ImageTransform(self.mean, self.std, self.data.crop_padding, self.data.flip, layout)

    def _normalisation(self, train: ImageSplit, rows: np.ndarray) -> tuple[list[float], list[float]]:
        channels, height, width = self.image_shape
        if self.data.mean is None or self.data.std is None:
            return mean_and_std(train.sums[rows], train.squares[rows], height * width)
        if len(self.data.mean) != channels:
            reason = f"data.mean has {len(self.data.mean)} values, the images have {channels} channel(s)"
            raise UserError(reason, "give one value a channel, or null to compute them")
        return list(self.data.mean), list(self.data.std)

    def _place(self, stores: dict[str, Tensor], device: torch.device) -> str:
        """Move all pixels to the GPU when that is wanted and they fit. Returns: where they are, for the record."""
        if device.type != "cuda" or not self.config.performance.data_on_device:
            return "memory-mapped"
        free, size = torch.cuda.mem_get_info(device)[0], sum(store.numel() for store in stores.values())
        if size >= free / 2:
            return (
                f"memory-mapped: {size / 2**30:.1f} GiB are more than half of {free / 2**30:.1f} GiB free on {device}"
            )
        for name, store in stores.items():
            stores[name] = store.to(device)
        return f"{size / 2**30:.2f} GiB on {device}"

    def _facts(self, found: ImageSplits, roles: Mapping[str, Role], kept: str) -> dict[str, object]:
        channels, height, width = self.image_shape
        facts: dict[str, object] = {"source": found.source}
        facts |= {name: f"{len(role.rows):,} images, {role.origin}" for name, role in roles.items()}
        facts["image"] = f"{channels}x{height}x{width} uint8, {kept}"
        facts["classes"] = len(self.class_names)
        facts["mean"], facts["std"] = [round(x, 4) for x in self.mean], [round(x, 4) for x in self.std]
        facts["sha256"] = {name: split.sha256[:16] for name, split in found.splits.items()}
        if found.notes:
            facts["notes"] = list(found.notes)
        return facts


def assign_roles(found: ImageSplits, eval_fraction: float) -> dict[str, Role]:
    """Which images train, and which evaluate.

    A set with a val split is evaluated on it while it trains, and tested at the end where it has a test split. One with
    only a test split is evaluated on that, as is usual for the small benchmarks. One with neither gives up a fixed
    share of its training images.
    """
    roles = {name: Role(name, split.rows, "as the set brings them") for name, split in found.splits.items()}
    if "val" not in roles and "test" in roles:
        test = roles.pop("test")
        return {**roles, "val": Role("test", test.rows, "the test split: the set has no other to evaluate on")}
    if "val" not in roles:
        train = found.splits["train"]
        rows, held_out = hold_out(train.rows, train.labels, eval_fraction)
        origin = f"a fixed share of {eval_fraction:g} held out of train: the set has no evaluation split"
        return {"train": Role("train", rows, "the rest"), "val": Role("train", held_out, origin)}
    return roles


def hold_out(rows: np.ndarray, labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Part rows into two, the second with a share `fraction` of every class; always the same ones.

    Args: rows (M,) int64. labels (N,) int64, indexed by rows. Returns: both parts in ascending order, neither empty.
    Raises: UserError: there is only one row.
    """
    if len(rows) < 2:
        raise UserError(f"data: {len(rows)} usable image(s) cannot be parted for training and evaluation")
    shuffled = np.random.default_rng(HOLD_OUT_SEED).permutation(rows)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    # Evenly spaced picks out of rows in order of class take the same share of each.
    picked = (np.arange(count) * len(rows)) // count + len(rows) // (2 * count)
    return np.sort(np.delete(by_class, picked)), np.sort(by_class[picked])


def mean_and_std(sums: np.ndarray, squares: np.ndarray, num_pixels: int) -> tuple[list[float], list[float]]:
    """Per channel, over all pixels of all images, on a scale of 0 to 1.

    Args: sums, squares (N, C) int64: of each image's 8-bit values and of their squares. num_pixels: of an image.
    """
    count = len(sums) * num_pixels
    mean = sums.sum(axis=0) / count
    variance = squares.sum(axis=0) / count - mean**2
    # A channel without contrast would be divided by zero; one grey level is the least there can be.
    std = np.sqrt(np.maximum(variance, 1.0))
    return (mean / 255).tolist(), (std / 255).tolist()
