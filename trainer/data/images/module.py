"""The data module of tasks on images: which split is evaluated, what is held out, where the pixels are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from trainer.config.schema import Config
from trainer.data.batch import Gatherable, MicroBatch
from trainer.data.hold_out import hold_out
from trainer.data.images.batches import ImageSet, ImageTransform
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.input_spec import ImageInputSpec
from trainer.data.images.own_transform import OwnTransform
from trainer.data.images.splits import ImageSplit, ImageSplits, read_splits
from trainer.data.module import DataModule
from trainer.errors import ConfigError, UserError

ImageConfigT = TypeVar(
    "ImageConfigT", bound=Config[Any, Any, ImageDataConfig], default=Config[Any, Any, ImageDataConfig]
)


@dataclass(frozen=True)
class Role:
    """What train, val or test is made of: rows (M,) int64 of a split, and a sentence about them for the record."""

    split: str
    rows: np.ndarray
    origin: str


class ImageDataModule(DataModule[ImageConfigT]):
    """Image sets of one run.

    After `load`: sets (train, val and perhaps test) and `spec`. A subclass for a task without labels sets uses_labels
    to False; labels are then not read, and classes are no part of the fingerprint.
    """

    uses_labels: ClassVar[bool] = True

    def __init__(self, config: ImageConfigT) -> None:
        super().__init__(config)
        self.facts: dict[str, object] = {}
        self._spec: ImageInputSpec | None = None
        self._fingerprint: str | None = None

    def load(self, device: torch.device) -> None:
        """Read, decode and place the images.

        Raises: UserError: the data is not there, not as configured, or has classes that the run does not have.
        """
        data, spec = self.config.data, self._spec
        if spec is None:
            found = read_splits(data, class_names=None if self.uses_labels else ())
        else:
            if problems := spec.conflicts(data):
                raise ConfigError(problems)
            found = read_splits(data, spec.form, spec.class_names)
        roles = assign_roles(found, data.eval_fraction)
        if spec is None:
            train = found.splits[roles["train"].split]
            mean, std = _normalisation(data, train, roles["train"].rows)
            self._spec = ImageInputSpec(found.form, list(found.class_names), mean, std)
        stores = {name: torch.from_numpy(split.pixels) for name, split in found.splits.items()}
        kept = self._place(stores, device)
        images = {
            name: ImageSet(stores[role.split], found.splits[role.split].labels, role.rows, self.config.seed)
            for name, role in roles.items()
        }
        self.sets = self.build_sets(images)
        self._fingerprint = fingerprint(found, roles)
        self.facts = self._facts(found, roles, kept)

    def build_sets(self, images: Mapping[str, ImageSet]) -> Mapping[str, Gatherable[MicroBatch]]:
        """What is trained and evaluated on. Args: images: train, val and perhaps test."""
        return images

    @property
    def spec(self) -> ImageInputSpec:
        """Form, classes and normalisation: derived by `load` when a run begins, else those of the run."""
        if self._spec is None:
            raise RuntimeError("the data is not loaded yet")
        return self._spec

    def write_input_spec(self, run_dir: Path) -> None:
        """Write form, classes and normalisation to the run directory."""
        self.spec.write(run_dir)

    def read_input_spec(self, run_dir: Path) -> None:
        """Take form, classes and normalisation of a run. Raises: UserError: the run has none, or it is damaged."""
        self._spec = ImageInputSpec.read(run_dir)

    def fingerprint(self) -> str | None:
        """Hash of pixels, labels and roles of all samples, wherever the files are; None before `load`."""
        return self._fingerprint

    def describe(self) -> Mapping[str, object]:
        """Facts for the run's record: source, sizes, classes, normalisation, fingerprint."""
        return self.facts

    def transform(self) -> ImageTransform:
        """Converts a batch's images to the network's input, with the configured augmentation in training.

        Raises: UserError: an augmentation of the user's own cannot be built.
        """
        data = self.config.data
        own = OwnTransform.of(data)
        return self.spec.transform(data.crop_padding, data.flip, self.config.performance.channels_last, own)

    def _place(self, stores: dict[str, Tensor], device: torch.device) -> str:
        """Move all pixels to the GPU if configured and if they fit. Returns: where they are, for the record."""
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
        spec = self.spec
        channels, height, width = spec.form.shape
        facts: dict[str, object] = {"source": found.source}
        facts |= {"revision": found.revision} if found.revision else {}
        facts |= {name: f"{len(role.rows):,} images, {role.origin}" for name, role in roles.items()}
        facts["image"] = f"{channels}x{height}x{width} uint8, {kept}"
        facts["classes"] = len(spec.class_names)
        facts["mean"], facts["std"] = [round(x, 4) for x in spec.mean], [round(x, 4) for x in spec.std]
        facts["fingerprint"] = str(self._fingerprint)[:16]
        if found.notes:
            facts["notes"] = list(found.notes)
        return facts


def fingerprint(found: ImageSplits, roles: Mapping[str, Role]) -> str:
    """SHA-256 of what is trained and evaluated on: pixels, labels, class names, and the rows of each role.

    The path does not enter, and the pixels' hashes are those that the cache keeps.
    """
    content: dict[str, object] = {"classes": list(found.class_names)}
    for name, role in roles.items():
        split = found.splits[role.split]
        content[name] = [split.sha256, _array_hash(role.rows), _array_hash(split.labels[role.rows])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _array_hash(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<i8").data).hexdigest()


def assign_roles(found: ImageSplits, eval_fraction: float) -> dict[str, Role]:
    """Which images are trained on, and which are evaluated.

    A val split is evaluated during training, and a test split beside it at the end. If the test split is the only
    other one, it is evaluated during training, as is usual for the small benchmarks. If there is neither, a fixed share
    of the training images is held out.
    """
    roles = {name: Role(name, split.rows, "a split of the set") for name, split in found.splits.items()}
    if "val" not in roles and "test" in roles:
        test = roles.pop("test")
        return {**roles, "val": Role("test", test.rows, "the test split: the set has no validation split")}
    if "val" not in roles:
        train = found.splits["train"]
        rows, held_out = hold_out(train.rows, train.labels, eval_fraction)
        origin = f"a fixed share of {eval_fraction:g} held out of train: the set has no evaluation split"
        return {"train": Role("train", rows, "the rest"), "val": Role("train", held_out, origin)}
    return roles


def _normalisation(data: ImageDataConfig, train: ImageSplit, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and std per channel as configured, else those of the training images."""
    channels, height, width = train.pixels.shape[1:]
    if data.mean is None or data.std is None:
        return mean_and_std(train.sums[rows], train.squares[rows], height * width)
    if len(data.mean) != channels:
        shown = "1 channel" if channels == 1 else f"{channels} channels"
        reason = f"data.mean has {len(data.mean)} values, the images have {shown}"
        raise UserError(reason, "give one value per channel, or null to compute them")
    return list(data.mean), list(data.std)


def mean_and_std(sums: np.ndarray, squares: np.ndarray, num_pixels: int) -> tuple[list[float], list[float]]:
    """Per channel, over all pixels of all images, on a scale of 0 to 1.

    Args: sums, squares (N, C) int64: of each image's 8-bit values and of their squares. num_pixels: of an image.
    """
    count = len(sums) * num_pixels
    mean = sums.sum(axis=0) / count
    variance = squares.sum(axis=0) / count - mean**2
    # At least one grey level: a constant channel would be divided by zero.
    std = np.sqrt(np.maximum(variance, 1.0))
    return (mean / 255).tolist(), (std / 255).tolist()
