"""Sizes of the task's networks, for `plan`."""

from __future__ import annotations

import torch

from tasks.dcgan.config import DCGANConfig, DCGANModel
from tasks.dcgan.networks import Discriminator, Generator
from trainer.config.schema import Config
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.sizes import known_sizes
from trainer.estimate.activations import saved_bytes
from trainer.estimate.memory import ModelSizes

SAMPLES = 2  # BatchNorm cannot normalise a single one


def sizes(config: Config[DCGANConfig, DCGANModel, ImageDataConfig]) -> ModelSizes | None:
    """Parameters and activations per image; None for a set of unknown image size. See TaskSpec.sizes.

    Activations are those of the larger half of a step: D on real and generated images, or G followed by D.
    """
    model, data = config.model, known_sizes(config.data)
    if data is None:
        return None
    channels, size, _ = data.shape
    # On the CPU: drawing initial values on the meta device makes torch import its whole compiler.
    discriminator, generator = Discriminator(model, channels, size), Generator(model, channels, size)
    kept = {
        "discriminator": saved_bytes(discriminator, torch.zeros(SAMPLES, channels, size, size)),
        "generator": saved_bytes(generator, torch.zeros(SAMPLES, model.latent_size)),
    }
    networks = {"discriminator": discriminator, "generator": generator}
    counts = {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}
    activations = max(2 * kept["discriminator"], sum(kept.values())) // SAMPLES
    return ModelSizes(counts, sum(counts.values()), activations, data.num_images)
