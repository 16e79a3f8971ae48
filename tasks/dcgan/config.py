"""The configuration of the DCGAN task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.callbacks import average_of
from trainer.config.schema import Config, Count, ModelConfig, TaskConfig, settings
from trainer.data.images.config import IMAGE_DATAS, ImageDataConfig, image_problems
from trainer.errors import Problem, UserError
from trainer.run.files import CONFIG_FILE, INPUT_SPEC_FILE, MODEL_FILE
from trainer.run.opening import open_stored_run
from trainer.task import TaskSpec

IMAGE_SIZES = (32, 64)
FEATURES_ADVICE = "possible: pixels, run:DIRECTORY of a finished run of ours, torchscript:FILE"


@settings
class DCGANConfig(TaskConfig):
    """Losses and updates of the two networks, sample grids and scores."""

    # Sample grids do not change what is trained.
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"sample_every_n_steps", "num_samples"})
    CONFIRMS_CODE: ClassVar[frozenset[str]] = frozenset({"features_sha256"})
    EVALUATION: ClassVar[frozenset[str]] = frozenset({"features", "features_sha256", "num_scored"})

    loss: Literal["non_saturating", "saturating", "hinge"]
    """non_saturating is BCE with logits and flipped labels for the generator, as in the paper; saturating is the
    minimax game; hinge has margins and no labels."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)]
    """Real images are labelled 1 minus this."""
    discriminator_steps: Count
    """Updates of the discriminator in one step, each on different real images and different noise."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None
    """Decay per step of the averaged generator, from which samples and scores are taken; null averages none."""
    sample_every_n_steps: Count
    """Steps between two grids of samples."""
    num_samples: Annotated[int, Field(ge=2)]
    """Images of a grid."""
    features: str
    """Network whose features the scores are taken in: pixels, run:DIRECTORY or torchscript:FILE."""
    features_sha256: str | None
    """SHA-256 of the TorchScript file; another file is refused."""
    num_scored: Annotated[int, Field(ge=2)]
    """Images that are generated and compared with as many training images for a score, at most."""


@settings
class DCGANModel(ModelConfig):
    """Both networks; their depth follows from the size of the images."""

    width: Count
    """Channels at half the image's size; they double each time the size halves."""
    latent_size: Count
    """Dimensions of the noise."""
    spectral_norm: bool
    """Spectral normalisation instead of BatchNorm in the discriminator."""


@settings
class GenerateArguments:
    """Arguments of `predict`."""

    n: Count = 64
    """Number of images."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the latent points."""
    interpolate: Annotated[int, Field(ge=2)] | None = None
    """Images of a walk between two points of the latent space; null draws a separate point for each image."""


def validate(config: Config[DCGANConfig, DCGANModel, ImageDataConfig]) -> Sequence[Problem]:
    """Problems that the types do not catch."""
    task, data = config.task, config.data
    loss, features = _loss_problems(task), _feature_problems(task)
    return [*image_problems(data), *_size_problems(data), *loss, *features, *_average_problems(config)]


def _average_problems(config: Config[DCGANConfig, DCGANModel, ImageDataConfig]) -> Iterator[Problem]:
    average = average_of(config)
    if average is not None and config.task.ema_decay is not None:
        advice = f"callbacks={average[0]} averages the generator too; set it to null, or leave the callback out"
        yield Problem("task.ema_decay", config.task.ema_decay, advice)


def _size_problems(data: ImageDataConfig) -> Iterator[Problem]:
    size = data.image_size
    if size is not None and size not in IMAGE_SIZES:
        yield Problem("data.image_size", size, f"the networks are for {' and '.join(map(str, IMAGE_SIZES))} pixels")


def _loss_problems(task: DCGANConfig) -> Iterator[Problem]:
    if task.loss == "hinge" and task.label_smoothing:
        yield Problem("task.label_smoothing", task.label_smoothing, "task.loss=hinge has no labels; set it to 0")


def _feature_problems(task: DCGANConfig) -> Iterator[Problem]:
    kind, _, place = task.features.partition(":")
    path = Path(place).expanduser()
    if task.features_sha256 is not None and kind != "torchscript":
        yield Problem("task.features_sha256", task.features_sha256, "belongs to task.features=torchscript:FILE")
    if kind == "run":
        missing = [name for name in (CONFIG_FILE, INPUT_SPEC_FILE, MODEL_FILE) if not (path / name).is_file()]
        if missing:
            advice = f"{path} is no finished run: it has no {' and no '.join(missing)}"
            yield Problem("task.features", task.features, advice)
            return
        try:
            open_stored_run(path)
        except UserError as error:
            yield Problem("task.features", task.features, error.lines[0])
    elif kind == "torchscript":
        yield from _torchscript_problems(task, path)
    elif task.features != "pixels":
        yield Problem("task.features", task.features, FEATURES_ADVICE)


def _torchscript_problems(task: DCGANConfig, path: Path) -> Iterator[Problem]:
    if not path.is_file():
        yield Problem("task.features", task.features, f"{path} is not a file")
        return
    digest = sha256_of(path)
    if task.features_sha256 != digest:
        # A TorchScript file is code: it runs only if the user has confirmed which one it is.
        advice = f"the file's SHA-256 is {digest}; set it to confirm that this file may be run"
        yield Problem("task.features_sha256", task.features_sha256, advice)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TASK = TaskSpec(
    name="dcgan",
    config=DCGANConfig,
    models={"dcgan": DCGANModel},
    datas=IMAGE_DATAS,
    module="tasks.dcgan.module:build_module",
    data="tasks.dcgan.data:DCGANData",
    sizes="tasks.dcgan.sizes:sizes",
    validate=validate,
    # The averaged generator reads the weights after each step, and samples are drawn between steps.
    needs_full_parameters=True,
    inference="tasks.dcgan.inference:DCGANInference",
    predict_arguments=GenerateArguments,
    predicts_mixed=False,
)
