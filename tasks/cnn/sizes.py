"""Size of the task's network, for `plan`."""

from __future__ import annotations

import torch

from tasks.cnn.config import CNNConfig
from tasks.cnn.models import build_model
from trainer.config.own_parts import OwnModelConfig
from trainer.config.schema import Config, ModelConfig
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.sizes import known_sizes
from trainer.estimate.activations import saved_bytes
from trainer.estimate.memory import ModelSizes

SAMPLES = 2  # BatchNorm cannot normalise a single one


def sizes(config: Config[CNNConfig, ModelConfig, ImageDataConfig]) -> ModelSizes | None:
    """Parameters and activations per image; None for a set of unknown image size, or a network of the user's own. See
    TaskSpec.sizes."""
    data = known_sizes(config.data)
    if data is None or isinstance(config.model, OwnModelConfig):
        return None
    with torch.device("meta"):
        model = build_model(config.model, data.shape, data.num_classes)
    kept = saved_bytes(model, torch.zeros(SAMPLES, *data.shape))
    count = sum(parameter.numel() for parameter in model.parameters())
    return ModelSizes({"model": count}, count, kept // SAMPLES, data.num_train)
