"""The schema of image data sets, shared by every task on images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.own_parts import OwnTransformConfig
from trainer.config.schema import Count, DataConfig, settings
from trainer.data.sources import path_problems, revision_problems
from trainer.errors import Problem

ChannelValues = Annotated[list[Annotated[float, Field(ge=0.0, le=1.0)]], Field(min_length=1, max_length=3)]
ChannelScales = Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=1, max_length=3)]


@settings
class ImageDataConfig(DataConfig):
    """Images of one size, decoded once to 8 bits per channel. Without a source, for sets that are embedded."""

    image_size: Count | None
    """Pixels of a side of the square images; null keeps the size, which must then be the same for all images."""
    resize: Literal["stretch", "crop"]
    """stretch scales both sides to image_size; crop scales the shorter side down and cuts out the centre."""
    channels: Literal[1, 3] | None
    """Convert every image to grey (1) or RGB (3); null takes the channels of the first image and refuses a mixture."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the training split that is held out where the set has no evaluation split."""
    crop_padding: Annotated[int, Field(ge=0)]
    """Pixels of a black border, out of which a window of the image's size is cut at random; in training only."""
    flip: bool
    """Training only: mirror images left to right with probability 0.5."""
    transform: OwnTransformConfig | None
    """Training only: an augmentation of your own, before the normalisation; see docs/own_parts.md."""
    mean: ChannelValues | None
    """Subtracted per channel, on a scale of 0 to 1; null computes it from the training set."""
    std: ChannelScales | None
    """Divided by per channel, on a scale of 0 to 1; null computes it from the training set."""


@settings
class StoredImagesConfig(ImageDataConfig):
    """Any set of images on the hub or in a local directory."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"sha256"})

    path: str | None
    """Local directory (parquet files as on the hub, or one folder per class) or file; null uses the hub."""
    hub_id: str | None
    """owner/name on the hub."""
    subset: str | None
    """Configuration of the set on the hub, or the folder of that name below path."""
    revision: str | None
    """Commit of the set on the hub; null takes the newest."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """SHA-256 of the set's rows, as the message about a wrong one gives it; null accepts any."""
    image_column: str | None
    """Column of images; null takes the only one of that type."""
    label_column: str | None
    """Column of classes; null takes the only one of that type, or the one called label."""
    on_corrupt: Literal["refuse", "skip"]
    """Files that cannot be used: refuse ends the run, skip leaves them out; both count them and name some."""


@settings
class NamedImagesConfig(StoredImagesConfig):
    """A well-known set, whose content does not depend on its path."""

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"path", "revision", "sha256"})


IMAGE_DATAS: dict[str, type[DataConfig]] = {
    "digits": ImageDataConfig,
    "mnist": NamedImagesConfig,
    "fashion_mnist": NamedImagesConfig,
    "cifar10": NamedImagesConfig,
    "cifar100": NamedImagesConfig,
    "image_folder": StoredImagesConfig,
    "hub": StoredImagesConfig,
}


def image_problems(data: ImageDataConfig) -> list[Problem]:
    """Problems that the types do not catch: no source, a missing path, contradicting values."""
    problems = _source_problems(data) if isinstance(data, StoredImagesConfig) else []
    if (data.mean is None) != (data.std is None):
        key = "data.mean" if data.mean is None else "data.std"
        problems.append(Problem(key, None, "data.mean and data.std are given together, or both are null"))
    elif data.mean is not None and data.std is not None and len(data.mean) != len(data.std):
        problems.append(Problem("data.std", data.std, f"data.mean has {len(data.mean)} channels"))
    if data.channels is not None and data.mean is not None and len(data.mean) != data.channels:
        problems.append(Problem("data.mean", data.mean, f"needs {data.channels} values, one for each of data.channels"))
    if data.image_size is not None and data.crop_padding >= data.image_size:
        advice = f"must be smaller than data.image_size={data.image_size}; usual is an eighth of it"
        problems.append(Problem("data.crop_padding", data.crop_padding, advice))
    if data.resize == "crop" and data.image_size is None:
        problems.append(Problem("data.resize", "crop", "needs data.image_size"))
    return problems


def _source_problems(data: StoredImagesConfig) -> list[Problem]:
    if data.path is not None:
        return [*path_problems(data.path), *revision_problems(data.revision, data.path)]
    if data.hub_id is None:
        key = "data.path" if data.name == "image_folder" else "data.hub_id"
        return [Problem(key, None, f"data={data.name} needs data.path=DIRECTORY or data.hub_id=OWNER/NAME")]
    return []
