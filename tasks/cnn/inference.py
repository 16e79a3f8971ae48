"""A trained classifier on raw images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from tasks.cnn.config import CNNConfig, PredictArguments
from tasks.cnn.models import build_model
from tasks.cnn.predict import Outcome, predict_files
from trainer.config.schema import Config, ModelConfig
from trainer.data.images.batches import ImageSet
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.decode import Unusable
from trainer.data.images.input_spec import ImageInputSpec
from trainer.data.images.raw import read_image
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


class RawImages(Sequence[np.ndarray]):
    """Images of a set as arrays that `preprocess` takes, read when they are asked for."""

    def __init__(self, images: ImageSet, count: int) -> None:
        self.images, self.num_images = images, count

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: Any) -> Any:
        numbers = np.arange(self.num_images)[index]
        arrays = [_as_array(image) for image in self.images.pixels(np.atleast_1d(numbers)).cpu().numpy()]
        return arrays if isinstance(index, slice) else arrays[0]


class CNNInference(ExportableInference):
    """The network of a run and the run's own image form, normalisation and class names.

    An input is a path, the bytes of an encoded image, a Pillow image, or an array (H, W) or (H, W, 3), uint8 or uint16.
    Logits are those of `eval` bit for bit if images come in the same batches, uncompiled, on the same device.
    """

    metric = "accuracy"
    prefix = "model."

    def __init__(
        self,
        config: Config[CNNConfig, ModelConfig, ImageDataConfig],
        network: nn.Module,
        device: torch.device,
        spec: ImageInputSpec,
    ) -> None:
        super().__init__(config, network, device)
        self.spec = spec
        # In bf16-true Lightning has rounded mean and std with the weights.
        self.transform = spec.transform(channels_last=config.performance.channels_last).to(device, self.dtype)

    @classmethod
    def load(cls, config: Config[CNNConfig, ModelConfig, ImageDataConfig], run_dir: Path, device: torch.device) -> Self:
        """The classifier of a finished run. Raises: UserError: a file of the run is missing or damaged."""
        spec = ImageInputSpec.read(run_dir)
        network = build_model(config.model, spec.form.shape, len(spec.class_names))
        load_weights(network, run_dir, cls.prefix)
        return cls(config, network, device, spec)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs."""
        return next(self.network.parameters()).dtype

    def listed(self, inputs: Any) -> Sequence[Any]:
        """See Inference. An array (H, W) or (H, W, 3) is one image, (N, H, W) or (N, H, W, 3) several."""
        is_one = isinstance(inputs, np.ndarray) and inputs.ndim == 2 + (inputs.shape[-1] == 3)
        return [inputs] if is_one else super().listed(inputs)

    def preprocess(self, inputs: Sequence[Any]) -> Mapping[str, Tensor]:
        """Returns: images (B, C, H, W), normalised. Raises: BadInput: an input is no image or cannot be converted."""
        pixels = [self._read(value) for value in inputs]
        for number, (value, image) in enumerate(zip(inputs, pixels, strict=True)):
            if isinstance(image, str):
                raise BadInput(number, f"{value}: {image}" if isinstance(value, (str, Path)) else image)
        return {"images": self.normalise(np.stack(pixels))}

    def normalise(self, pixels: np.ndarray) -> Tensor:
        """Shapes: pixels (B, C, H, W) uint8 -> (B, C, H, W) in the network's type, on the device."""
        return self.transform(torch.from_numpy(pixels).to(self.device), None).to(self.dtype)

    def postprocess(self, outputs: Tensor) -> list[dict[str, Any]]:
        """For each row of logits (B, K): label, its probability, and the probability of every class by name."""
        shares = outputs.float().softmax(dim=1).tolist()
        rows = [dict(zip(self.spec.class_names, row, strict=True)) for row in shares]
        labels = [max(row, key=row.__getitem__) for row in rows]
        return [
            {"label": label, "probability": row[label], "probabilities": row}
            for label, row in zip(labels, rows, strict=True)
        ]

    def example_inputs(self) -> ExampleInputs:
        """Two black images."""
        pixels = np.zeros((2, *self.spec.form.shape), dtype=np.uint8)
        return ExampleInputs({"images": self.normalise(pixels)}, {"images": {0: "batch"}})

    def processing(self) -> Processing:
        """See ExportableInference."""
        spec = self.spec
        inputs = {"kind": "images", "form": spec.form.key(), "mean": spec.mean, "std": spec.std}
        return Processing(inputs, {"kind": "labels", "names": spec.class_names, "digits": None})

    def probes(self) -> Sequence[np.ndarray]:
        """Images of noise, from dark to light."""
        draw = np.random.default_rng(0)
        noise = draw.integers(0, 256, (NUM_PROBES, *self.spec.form.shape), dtype=np.uint8)
        return [_as_array(image // (NUM_PROBES - number)) for number, image in enumerate(noise)]

    def evaluation(self, data: DataModule) -> Evaluation:
        """See ExportableInference."""
        from tasks.cnn.data import MixupSet  # with Lightning, which a loaded model does not need

        name, count = evaluated_set(self.config, data)
        images, train = data.sets[name], data.sets["train"]
        train = train.images if isinstance(train, MixupSet) else train
        assert isinstance(images, ImageSet) and isinstance(train, ImageSet)
        labels = images.labels[:count]

        def accuracy(outputs: Tensor) -> float:
            return float((outputs.argmax(1) == labels).double().mean())

        return Evaluation(RawImages(images, count), self.metric, accuracy, True, RawImages(train, len(train)))

    def predict(self, arguments: PredictArguments, run_dir: Path) -> Path:
        """Classify a file or a folder of images, see tasks/cnn/predict.py.

        Returns: the file written. Raises: UserError: the input cannot be read, or the output not written.
        """
        batch_size = self.config.batch.eval_size
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 32)) as pool:

            def classify(paths: Sequence[Path]) -> list[Outcome]:
                """One batch; images that cannot be used are no part of it."""
                pixels = list(pool.map(self._read, paths))
                usable = [image for image in pixels if not isinstance(image, str)]
                results = iter(self._results(np.stack(usable)) if usable else [])
                return [image if isinstance(image, str) else next(results) for image in pixels]

            return predict_files(arguments, run_dir, self.spec.class_names, batch_size, classify)

    def _results(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        return self.postprocess(self.forward({"images": self.normalise(pixels)}))

    def _read(self, value: Any) -> np.ndarray | str:
        """Pixels, or the reason why there are none."""
        try:
            return read_image(value, self.spec.form)
        except Unusable as error:
            return str(error)


def _as_array(image: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (H, W), or (H, W, 3)."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)
