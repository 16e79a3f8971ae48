"""A trained classifier on raw images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tasks.cnn.config import CNNConfig, PredictArguments
from tasks.cnn.models import build_model
from tasks.cnn.predict import Outcome, predict_files
from trainer.config.schema import Config, ModelConfig
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.decode import Unusable
from trainer.data.images.input_spec import ImageInputSpec
from trainer.data.images.raw import read_image
from trainer.errors import UserError
from trainer.inference import ExampleInputs, Inference, load_weights


class CNNInference(Inference):
    """The network of a run and the run's own image form, normalisation and class names.

    An input is a path, the bytes of an encoded image, a Pillow image, or an array (H, W) or (H, W, 3), uint8 or uint16.
    Logits are those of `eval` bit for bit if images come in the same batches, uncompiled, on the same device.
    """

    metric = "accuracy"

    def __init__(
        self, config: Config[CNNConfig, ModelConfig, ImageDataConfig], spec: ImageInputSpec, device: torch.device
    ) -> None:
        self.config, self.spec, self.device = config, spec, device
        self.network = build_model(config.model, spec.form.shape, len(spec.class_names)).eval()
        self.transform = spec.transform(channels_last=config.performance.channels_last)

    @classmethod
    def load(cls, config: Config[CNNConfig, ModelConfig, ImageDataConfig], run_dir: Path, device: torch.device) -> Self:
        """The classifier of a finished run. Raises: UserError: a file of the run is missing or damaged."""
        inference = cls(config, ImageInputSpec.read(run_dir), device)
        load_weights(inference.network, run_dir, "model.")
        inference.network.requires_grad_(False).to(device)
        if config.performance.channels_last:
            inference.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        # In bf16-true the weights are stored in bfloat16, and Lightning has rounded mean and std with them.
        inference.transform.to(device, inference.dtype)
        return inference

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs."""
        return next(self.network.parameters()).dtype

    def preprocess(self, inputs: Sequence[Any]) -> Mapping[str, Tensor]:
        """Returns: images (B, C, H, W), normalised. Raises: UserError: an input is no image or cannot be converted."""
        pixels = [self._read(value) for value in inputs]
        for number, (value, image) in enumerate(zip(inputs, pixels, strict=True)):
            if isinstance(image, str):
                name = str(value) if isinstance(value, (str, Path)) else f"input {number}"
                raise UserError(f"{name}: {image}")
        return {"images": self.normalise(np.stack(pixels))}

    def normalise(self, pixels: np.ndarray) -> Tensor:
        """Shapes: pixels (B, C, H, W) uint8 -> (B, C, H, W) in the network's type, on the device."""
        return self.transform(torch.from_numpy(pixels).to(self.device), None).to(self.dtype)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Shapes: images (B, C, H, W), normalised -> (B, K) float32, in the precision of the run's evaluation."""
        with self._precision():
            return self.network(images).float()

    def postprocess(self, outputs: Tensor) -> list[dict[str, Any]]:
        """For each row of logits (B, K): label, its probability, and the probability of every class by name."""
        shares = outputs.float().softmax(dim=1).tolist()
        rows = [dict(zip(self.spec.class_names, row, strict=True)) for row in shares]
        labels = [max(row, key=row.__getitem__) for row in rows]
        return [
            {"label": label, "probability": row[label], "probabilities": row}
            for label, row in zip(labels, rows, strict=True)
        ]

    def __call__(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Results of raw images, in their order. Raises: UserError: an input is no image or cannot be converted."""
        return self.postprocess(self.logits(self.preprocess(inputs)["images"])) if inputs else []

    def example_inputs(self) -> ExampleInputs:
        """Two black images."""
        pixels = np.zeros((2, *self.spec.form.shape), dtype=np.uint8)
        return ExampleInputs({"images": self.normalise(pixels)}, {"images": {0: "batch"}})

    def predict(self, arguments: PredictArguments, run_dir: Path) -> None:
        """Classify a file or a folder of images, see tasks/cnn/predict.py.

        Raises: UserError: the input cannot be read, or the output not written.
        """
        batch_size = self.config.batch.eval_size
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 32)) as pool:

            def classify(paths: Sequence[Path]) -> list[Outcome]:
                """One batch; images that cannot be used are no part of it."""
                pixels = list(pool.map(self._read, paths))
                usable = [image for image in pixels if not isinstance(image, str)]
                results = iter(self.postprocess(self.logits(self.normalise(np.stack(usable)))) if usable else [])
                return [image if isinstance(image, str) else next(results) for image in pixels]

            predict_files(arguments, run_dir, self.spec.class_names, batch_size, classify)

    def _read(self, value: Any) -> np.ndarray | str:
        """Pixels, or the reason why there are none."""
        try:
            return read_image(value, self.spec.form)
        except Unusable as error:
            return str(error)

    def _precision(self) -> AbstractContextManager[object]:
        types = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        dtype = types.get(self.config.trainer.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)
