"""A trained generator: images from latent points."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from tasks.dcgan.config import DCGANConfig, DCGANModel, GenerateArguments
from tasks.dcgan.networks import Generator, sample_images, to_pixels
from tasks.dcgan.noise import Stream, walk
from tasks.dcgan.pictures import save_grid
from trainer.collectives import decide_on_rank_0, has_peers
from trainer.config.schema import Config
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.input_spec import ImageInputSpec
from trainer.data.normal import normal
from trainer.errors import UserError
from trainer.inference import (
    NUM_PROBES,
    BadInput,
    Evaluation,
    ExampleInputs,
    ExportableInference,
    Processing,
    evaluated_set,
    load_weights,
)

if TYPE_CHECKING:
    from trainer.data.module import DataModule

MAX_GRID = 100  # images


class DCGANInference(ExportableInference):
    """The averaged generator of a run, or its generator where none was averaged.

    An input is a latent point, an array (L,) of floats, or an int, the number of a point among those of seed 0.
    """

    metric = "frechet_distance"

    def __init__(
        self, config: Config[DCGANConfig, DCGANModel, ImageDataConfig], network: nn.Module, device: torch.device
    ) -> None:
        super().__init__(config, network, device)
        self.latent_size = config.model.latent_size
        self.prefix = _prefix(config)

    @classmethod
    def load(
        cls, config: Config[DCGANConfig, DCGANModel, ImageDataConfig], run_dir: Path, device: torch.device
    ) -> Self:
        """The generator of a finished run. Raises: UserError: a file of the run is missing or damaged."""
        channels, size, _ = ImageInputSpec.read(run_dir).form.shape
        network = Generator(config.model, channels, size)
        load_weights(network, run_dir, _prefix(config))
        return cls(config, network, device)

    def __call__(self, inputs: Any, batch_size: int | None = None, *, seed: int = 0) -> list[Image.Image]:
        """Generated images.

        Args: inputs: how many; or latent points (N, L), or a list of points and numbers. seed: of the first form.
        """
        values = self.noise(inputs, seed) if isinstance(inputs, int) else inputs
        return [_picture(image) for outputs in self._batches(values, batch_size) for image in to_pixels(outputs).cpu()]

    def noise(self, num_points: int, seed: int = 0) -> np.ndarray:
        """Latent points (N, L) float32, those that the verb `predict` generates images from."""
        return normal(seed, 0, np.arange(num_points), self.latent_size, Stream.PREDICT)

    def listed(self, inputs: Any) -> Sequence[Any]:
        """See Inference. A number is that many points of seed 0, an array (L,) is one."""
        if isinstance(inputs, int):
            return range(inputs)
        is_one = isinstance(inputs, np.ndarray) and inputs.ndim == 1
        return [inputs] if is_one else super().listed(inputs)

    @torch.inference_mode()
    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Images (B, C, H, W) float32 in [-1, 1]; samples are never computed in mixed precision, see sample_images."""
        return self.network(**tensors).float()

    def preprocess(self, inputs: Sequence[Any]) -> Mapping[str, Tensor]:
        """Returns: noise (B, L). Raises: BadInput: an input is neither a number nor a latent point."""
        return {"noise": self._noise(np.stack([self._point(number, value) for number, value in enumerate(inputs)]))}

    def postprocess(self, outputs: Tensor) -> list[dict[str, Any]]:
        """For each image (C, H, W) of the generator: a PNG file in base64."""
        return [{"png_base64": base64.b64encode(_png(image)).decode()} for image in to_pixels(outputs).cpu()]

    def example_inputs(self) -> ExampleInputs:
        """Two latent points."""
        return ExampleInputs(self.preprocess([0, 1]), {"noise": {0: "batch"}})

    def processing(self) -> Processing:
        """See ExportableInference."""
        inputs = {"kind": "noise", "size": self.latent_size, "stream": int(Stream.PREDICT)}
        return Processing(inputs, {"kind": "images"})

    def probes(self) -> Sequence[int]:
        """Numbers of latent points."""
        return range(NUM_PROBES)

    def evaluation(self, data: DataModule) -> Evaluation:
        """The images that the run is scored with; calibration takes the noise of training."""
        from tasks.dcgan.data import ScoreBatch  # with Lightning, which a loaded model does not need
        from tasks.dcgan.features import build_features
        from tasks.dcgan.scores import frechet_distance

        name, count = evaluated_set(self.config, data)
        batch = data.sets[name].gather(np.arange(count), count, 0)
        assert isinstance(batch, ScoreBatch)
        channels, height, width = batch.images.shape[1:]
        features = build_features(self.config.task.features, (channels, height, width))
        real = features(batch.images).double()

        def distance(outputs: Tensor) -> float:
            return float(frechet_distance(real, features(to_pixels(outputs)).double()))

        trained = normal(self.config.seed, 0, np.arange(len(data.sets["train"])), self.latent_size, Stream.TRAINING)
        return Evaluation(list(batch.noise.numpy()), self.metric, distance, False, list(trained))

    def predict(self, arguments: GenerateArguments, run_dir: Path) -> Path:
        """Write n images and a grid of the first ones to samples/ in the run directory.

        Each batch is computed by one rank, so images do not depend on the number of ranks.
        Returns: their folder. Raises: UserError: they cannot be written.
        """
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if has_peers() else (0, 1)
        noise = latent_points(arguments, self.latent_size)
        kind = f"walk{arguments.interpolate}" if arguments.interpolate else "generated"
        folder = run_dir / "samples" / f"{kind}-seed{arguments.seed}-n{len(noise)}"
        decide_on_rank_0(lambda: _make_folder(folder))
        for start, images in self._images(noise, rank, world_size):
            for number, image in enumerate(images, start):
                (folder / f"{number:06d}.png").write_bytes(_png(image))
        if rank == 0:
            columns = arguments.interpolate
            shown = min(len(noise), MAX_GRID - MAX_GRID % columns if columns else MAX_GRID)
            # From the same batches, so that a tile of the grid equals the image in its file.
            first = takewhile(lambda batch: batch[0] < shown, self._images(noise, 0, 1))
            save_grid(torch.cat([images for _, images in first])[:shown], folder / "grid.png", columns)
            print(f"{len(noise)} images and grid.png: {folder}")
        return folder

    def _images(self, noise: np.ndarray, rank: int, world_size: int) -> Iterator[tuple[int, Tensor]]:
        """One rank's batches: number of the first image, images (B, C, H, W) uint8."""
        size = self.config.batch.eval_size
        for start in range(rank * size, len(noise), world_size * size):
            yield start, sample_images(self.network, self._noise(noise[start : start + size])).cpu()

    def _noise(self, noise: np.ndarray) -> Tensor:
        return torch.from_numpy(noise).to(self.device, next(self.network.parameters()).dtype)

    def _point(self, number: int, value: Any) -> np.ndarray:
        if isinstance(value, int):
            return normal(0, 0, np.array([value]), self.latent_size, Stream.PREDICT)[0]
        refusal = BadInput(number, f"neither an integer nor {self.latent_size} finite numbers")
        try:
            point = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise refusal from error
        if point.shape != (self.latent_size,) or not np.isfinite(point).all():
            raise refusal
        return point


def _prefix(config: Config[DCGANConfig, DCGANModel, ImageDataConfig]) -> str:
    return "averaged." if config.task.ema_decay is not None else "generator."


def latent_points(arguments: GenerateArguments, latent_size: int) -> np.ndarray:
    """(n, L) float32: n points, or walks one after the other, as many complete ones as fit in n and at least one."""
    if arguments.interpolate is None:
        return normal(arguments.seed, 0, np.arange(arguments.n), latent_size, Stream.PREDICT)
    num_walks = max(1, arguments.n // arguments.interpolate)
    ends = normal(arguments.seed, 0, np.arange(2 * num_walks), latent_size, Stream.PREDICT)
    walks = [walk(ends[2 * i], ends[2 * i + 1], arguments.interpolate) for i in range(num_walks)]
    return np.concatenate(walks)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from error


def _png(image: Tensor) -> bytes:
    """A PNG file. Shapes: image (C, H, W) uint8."""
    stream = io.BytesIO()
    _picture(image).save(stream, "PNG")
    return stream.getvalue()


def _picture(image: Tensor) -> Image.Image:
    """Shapes: image (C, H, W) uint8."""
    return Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())
