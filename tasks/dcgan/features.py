"""Networks in whose features images are compared, and the protocols that make scores comparable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.dcgan.config import FEATURES_ADVICE, sha256_of
from trainer.data.images.batches import ImageTransform
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.input_spec import ImageInputSpec
from trainer.errors import UserError
from trainer.run.files import MODEL_FILE

POOLED_SIZE = 8


@dataclass(frozen=True)
class FeatureNetwork:
    """A function of images and everything that its features depend on.

    name: as in task.features. sha256: of its weights, None where it has none. preprocessing: a sentence.
    compute: images (B, C, H, W) uint8, on any device -> (B, num_features) float32.
    """

    name: str
    sha256: str | None
    preprocessing: str
    num_features: int
    compute: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Shapes: images (B, C, H, W) uint8 -> (B, num_features) float32; single precision whatever the run's."""
        with torch.autocast(images.device.type, enabled=False):
            return self.compute(images).float()

    def protocol(self) -> dict[str, object]:
        """The values that must be equal for two scores to be comparable."""
        return {
            "network": self.name,
            "sha256": self.sha256,
            "num_features": self.num_features,
            "preprocessing": self.preprocessing,
        }


def build_features(name: str, image_shape: tuple[int, int, int]) -> FeatureNetwork:
    """The network called `pixels`, `run:DIRECTORY` or `torchscript:FILE` (see DCGANConfig.features).

    Args: image_shape: (C, H, W) of the images it will be given.
    Raises: UserError: it does not fit the images.
    """
    kind, _, place = name.partition(":")
    builders = {"run": _from_run, "torchscript": _from_torchscript}
    if kind in builders:
        sha256, preprocessing, compute = builders[kind](Path(place).expanduser(), image_shape)
    else:
        sha256, preprocessing, compute = None, f"averaged over a grid of {POOLED_SIZE}x{POOLED_SIZE}, 0 to 1", _pixels
    return FeatureNetwork(name, sha256, preprocessing, _num_features(name, compute, image_shape), compute)


def _pixels(images: Tensor) -> Tensor:
    """Colours of a coarse grid: needs no network, but sees only where an image is light or dark."""
    return functional.adaptive_avg_pool2d(images.float() / 255, POOLED_SIZE).flatten(1)


def _from_run(run_dir: Path, image_shape: tuple[int, int, int]) -> tuple[str, str, Callable[[Tensor], Tensor]]:
    """The input of the last layer of a finished classifier, with that run's own normalisation."""
    classifier = load_classifier(run_dir)
    channels, height, width = classifier.image_shape
    if channels != image_shape[0]:
        trained_on = "1 channel" if channels == 1 else f"{channels} channels"
        reason = f"it was trained on {trained_on}, these images have {image_shape[0]}"
        raise UserError(f"task.features=run:{run_dir}: {reason}", f"data.channels={channels} converts them")
    resizing = "" if image_shape[1:] == (height, width) else f"resized to {height}x{width} (bilinear, antialias), "
    sha256 = sha256_of(run_dir / MODEL_FILE)
    return sha256, f"8 bits, {resizing}the run's own normalisation", classifier.features


@dataclass(frozen=True)
class Classifier:
    """A finished classifier of images whose network ends in a layer `head`.

    image_shape: (C, H, W) that it was trained on.
    """

    transform: ImageTransform
    model: nn.Module
    image_shape: tuple[int, int, int]

    def logits(self, images: Tensor) -> Tensor:
        """Shapes: images (B, C, H, W) uint8 -> (B, K). Images of another size are resized first."""
        height, width = self.image_shape[1:]
        if images.shape[2:] != (height, width):
            images = _resized(images, height, width)
        return self.model.to(images.device)(self.transform.to(images.device)(images, None))

    def features(self, images: Tensor) -> Tensor:
        """Shapes: images (B, C, H, W) uint8 -> (B, F), the input of `head`."""
        taken: list[Tensor] = []
        hook = self.model.get_submodule("head").register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        try:
            self.logits(images)
        finally:
            hook.remove()
        return taken[0]


def load_classifier(run_dir: Path) -> Classifier:
    """The network of a finished run in single precision, from its directory alone.

    Raises: UserError: the run is no classifier of images.
    """
    from trainer.run.stored_config import read_stored_config

    stored = read_stored_config(run_dir)
    is_of_images = isinstance(stored.config.data, ImageDataConfig) and stored.task.inference is not None
    model = stored.task.load_inference(stored.config, run_dir, torch.device("cpu")).network if is_of_images else None
    if model is None or not hasattr(model, "head"):
        reason = f"a run of task={stored.task.name} has no features"
        raise UserError(f"task.features=run:{run_dir}: {reason}; use a run of task=cnn")
    spec = ImageInputSpec.read(run_dir)
    return Classifier(spec.transform(), model.float(), spec.form.shape)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    resized = functional.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _from_torchscript(path: Path, image_shape: tuple[int, int, int]) -> tuple[str, str, Callable[[Tensor], Tensor]]:
    """A file that takes 8-bit RGB images and does its own preprocessing, as the published Inception files do."""
    # torch.load's weights_only has no counterpart here: the user has confirmed this file by its SHA-256.
    network = torch.jit.load(str(path), map_location="cpu").eval()
    arguments = {argument.name for argument in network.forward.schema.arguments}
    # NVIDIA's published file returns class probabilities unless features are requested.
    options = {"return_features": True} if "return_features" in arguments else {}

    def compute(images: Tensor) -> Tensor:
        rgb = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        return network.to(images.device)(rgb, **options)

    grey = "grey repeated as RGB, " if image_shape[0] == 1 else ""
    return sha256_of(path), f"8-bit RGB, {grey}all else inside the file", compute


def _num_features(name: str, compute: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int]) -> int:
    """Run the network on two images. Raises: UserError: it does not accept them, or returns no vector for each."""
    images = torch.zeros(2, *image_shape, dtype=torch.uint8)
    try:
        with torch.no_grad():
            features = compute(images)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = "x".join(map(str, image_shape))
        reason = " ".join(str(error).split())[-160:]
        raise UserError(
            f"task.features={name}: does not accept 8-bit images of {shape}", reason, FEATURES_ADVICE
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2 or features.shape[1] < 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"task.features={name}: returns {shape} for 2 images; needed: (2, F) with F above 1")
    return features.shape[1]
