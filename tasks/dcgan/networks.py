"""The two networks of DCGAN (Radford, Metz and Chintala 2015, figure 1 and section 3) at any power-of-two size."""

from __future__ import annotations

from itertools import pairwise
from math import log2

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import spectral_norm

from tasks.dcgan.config import DCGANModel

FIRST_SIZE = 4  # side in pixels of the generator's first and the discriminator's last maps


class Generator(nn.Module):
    """Noise (B, latent_size) -> images (B, channels, size, size) in [-1, 1]."""

    def __init__(self, model: DCGANModel, channels: int, image_size: int) -> None:
        super().__init__()
        widths = _widths(model.width, image_size)[::-1]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(model.latent_size, widths[0], FIRST_SIZE, bias=False),
            *_normalised_relu(widths[0]),
        ]
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), *_normalised_relu(after)]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, noise: Tensor) -> Tensor:
        """Shapes: noise (B, latent_size) -> (B, channels, size, size) in [-1, 1]."""
        return self.layers(noise[:, :, None, None])


class Discriminator(nn.Module):
    """Images (B, channels, size, size) -> logits (B,), positive where an image is classified as real.

    With spectral normalisation (Miyato et al. 2018) the convolutions are normalised instead of the activations.
    """

    def __init__(self, model: DCGANModel, channels: int, image_size: int) -> None:
        super().__init__()
        widths = _widths(model.width, image_size)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
        for before, after in pairwise(widths):
            norm = [] if model.spectral_norm else [nn.BatchNorm2d(after)]
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=model.spectral_norm),
                *norm,
                nn.LeakyReLU(0.2, True),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, FIRST_SIZE, bias=False))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)
        if model.spectral_norm:
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """The logits of several batches, each with its own BatchNorm statistics.

        Real and generated images must not be normalised together. All other layers treat images independently, and one
        convolution of both is faster than two. A wrapper such as DDP also sees a single forward and backward.
        Shapes: each batch (B, channels, size, size) -> (B,).
        """
        if len(batches) == 1:
            return (self.layers(batches[0]).flatten(),)
        sizes = [len(images) for images in batches]
        values = torch.cat(batches)
        for layer in self.layers:
            apart = isinstance(layer, _BatchNorm)
            values = torch.cat([layer(part) for part in values.split(sizes)]) if apart else layer(values)
        return values.flatten().split(sizes)


def _widths(width: int, image_size: int) -> list[int]:
    """Channels from the largest resolution to 4x4: they double each time the size halves."""
    halvings = int(log2(image_size // FIRST_SIZE))
    return [width * 2**level for level in range(halvings)]


def _normalised_relu(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(True)]


@torch.no_grad()
def sample_images(generator: nn.Module, noise: Tensor) -> Tensor:
    """Images of a generator in evaluation mode, in the type of its weights.

    Shapes: noise (B, L) -> (B, C, H, W) uint8.
    """
    with torch.autocast(noise.device.type, enabled=False):
        return to_pixels(generator(noise.to(next(generator.parameters()).dtype)))


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def _initialise(layer: nn.Module) -> None:
    """Weights from N(0, 0.02); BatchNorm's scales from N(1, 0.02), as in the authors' code."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        layer.weight.normal_(0.0, 0.02)
        if layer.bias is not None:
            layer.bias.zero_()
    elif isinstance(layer, nn.BatchNorm2d):
        layer.weight.normal_(1.0, 0.02)
        layer.bias.zero_()
