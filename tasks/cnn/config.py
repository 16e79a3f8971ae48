"""The configuration of the CNN task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.own_parts import OwnModelConfig
from trainer.config.schema import Config, ModelConfig, NonNegative, TaskConfig, settings
from trainer.data.images.config import IMAGE_DATAS, ImageDataConfig, image_problems
from trainer.errors import Problem
from trainer.task import TaskSpec

LARGEST_SMALL_IMAGE = 64  # pixels; for larger ones stem=auto takes ImageNet's


@settings
class CNNConfig(TaskConfig):
    """How a classifier is trained."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Share of each label that is spread evenly over all classes."""
    mixup_alpha: NonNegative
    """Alpha of Beta(alpha, alpha), from which the share of another image in each one is drawn; 0 blends none."""


@settings
class PredictArguments:
    """Arguments of `predict`."""

    input: str
    """An image, or a folder whose images are classified, those in folders below it included."""
    output: str | None = None
    """A .csv or .jsonl file; null writes predictions.csv in the run directory."""
    on_bad_row: Literal["error", "skip"] | None = "error"
    """For an image that cannot be used: error ends the command, skip leaves it out, null writes a row without a
    result."""


@settings
class PlainConfig(ModelConfig):
    """A network without options."""


@settings
class ResNetConfig(ModelConfig):
    """A residual network."""

    stem: Literal["auto", "small", "imagenet"]
    """small: 3x3 convolution at full size; imagenet: 7x7 and pooling, both of stride 2; auto: small up to 64 pixels."""


def smallest_image(model: ModelConfig) -> int:
    """Smallest side in pixels at which no map of a network is empty."""
    if isinstance(model, ResNetConfig):
        return 32 if model.stem == "imagenet" else 8
    # A network of the user's own says itself what it takes.
    return 1 if isinstance(model, OwnModelConfig) else {"lenet5": 16, "reference_cnn": 4}[model.name]


def size_problem(model: ModelConfig, image_size: int) -> Problem | None:
    """A problem where images are too small for a network. Args: image_size: the shorter side, pixels."""
    least = smallest_image(model)
    if image_size >= least:
        return None
    return Problem("data.image_size", image_size, f"model={model.name} needs images of at least {least} pixels")


def validate(config: Config[CNNConfig, ModelConfig, ImageDataConfig]) -> Sequence[Problem]:
    """Problems that the types do not catch."""
    return list(_problems(config))


def _problems(config: Config[CNNConfig, ModelConfig, ImageDataConfig]) -> Iterator[Problem]:
    yield from image_problems(config.data)
    if config.data.image_size is not None:
        problem = size_problem(config.model, config.data.image_size)
        if problem is not None:
            yield problem


TASK = TaskSpec(
    name="cnn",
    config=CNNConfig,
    models={"lenet5": PlainConfig, "reference_cnn": PlainConfig, "resnet18": ResNetConfig, "resnet50": ResNetConfig},
    datas=IMAGE_DATAS,
    module="tasks.cnn.module:build_module",
    data="tasks.cnn.data:CNNData",
    sizes="tasks.cnn.sizes:sizes",
    inference="tasks.cnn.inference:CNNInference",
    predict_arguments=PredictArguments,
    validate=validate,
    own_model=OwnModelConfig,
    takes_metrics=True,
)
