"""The two networks against the paper's figure, and their losses against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.dcgan.config import DCGANModel
from tasks.dcgan.losses import discriminator_loss, generator_loss
from tasks.dcgan.networks import Discriminator, Generator


def model(**changes: object) -> DCGANModel:
    values = {"name": "dcgan", "width": 8, "latent_size": 16, "spectral_norm": False, **changes}
    return DCGANModel(**values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64])
def test_sizes(size: int, channels: int) -> None:
    images = Generator(model(), channels, size)(torch.randn(5, 16))
    assert images.shape == (5, channels, size, size)
    assert images.min() >= -1
    assert images.max() <= 1
    (logits,) = Discriminator(model(), channels, size)(images)
    assert logits.shape == (5,)


def test_the_papers_generator() -> None:
    """Figure 1: 100 numbers -> 1024x4x4 -> 512x8x8 -> 256x16x16 -> 128x32x32 -> 3x64x64."""
    generator = Generator(model(width=128, latent_size=100), 3, 64)
    shapes: list[tuple[int, ...]] = []
    for layer in generator.layers:
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    generator(torch.randn(2, 100))
    assert shapes == [(1024, 4, 4), (512, 8, 8), (256, 16, 16), (128, 32, 32), (3, 64, 64)]


def test_no_batchnorm_at_the_generators_output_and_the_discriminators_input() -> None:
    generator, discriminator = Generator(model(), 3, 64), Discriminator(model(), 3, 64)
    assert [type(layer).__name__ for layer in generator.layers][-2:] == ["ConvTranspose2d", "Tanh"]
    assert [type(layer).__name__ for layer in discriminator.layers][:3] == ["Conv2d", "LeakyReLU", "Conv2d"]
    assert all(layer.negative_slope == 0.2 for layer in discriminator.layers if isinstance(layer, nn.LeakyReLU))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    for network in (Generator(model(width=32), 3, 64), Discriminator(model(width=32), 3, 64)):
        weights = torch.cat([p.flatten() for p in network.parameters() if p.ndim == 4])
        assert weights.mean().item() == pytest.approx(0.0, abs=1e-3)
        assert weights.std().item() == pytest.approx(0.02, rel=0.02)
        norms = [layer for layer in network.layers if isinstance(layer, nn.BatchNorm2d)]
        scales = torch.cat([layer.weight for layer in norms])
        assert scales.mean().item() == pytest.approx(1.0, abs=0.01)
        assert all((layer.bias == 0).all() for layer in norms)


def test_batches_judged_together_keep_their_own_statistics() -> None:
    torch.manual_seed(0)
    together, apart = Discriminator(model(), 3, 32), Discriminator(model(), 3, 32)
    apart.load_state_dict(together.state_dict())
    real, fake = torch.randn(6, 3, 32, 32), torch.randn(4, 3, 32, 32) * 3 + 1
    logits = together(real, fake)
    for one, other in zip(logits, (*apart(real), *apart(fake)), strict=True):
        torch.testing.assert_close(one, other)
    for (name, one), other in zip(together.state_dict().items(), apart.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_spectral_norm_replaces_batchnorm_and_bounds_every_convolution() -> None:
    torch.manual_seed(0)
    network = Discriminator(model(spectral_norm=True), 3, 32)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.layers)
    for _ in range(50):
        network(torch.randn(2, 3, 32, 32))
    network.eval()
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d):
            largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
            torch.testing.assert_close(largest, torch.tensor(1.0), rtol=1e-3, atol=0)


def test_losses_are_the_formulas() -> None:
    real, fake = torch.randn(2, 20, generator=torch.Generator().manual_seed(0)) * 3
    bce = nn.BCEWithLogitsLoss(reduction="sum")
    ones, zeros = torch.ones(20), torch.zeros(20)
    expected = bce(real, ones) + bce(fake, zeros)
    for loss in ("non_saturating", "saturating"):
        torch.testing.assert_close(discriminator_loss(real, fake, loss, 0.0), expected)
    torch.testing.assert_close(
        discriminator_loss(real, fake, "non_saturating", 0.1), bce(real, ones * 0.9) + bce(fake, zeros)
    )
    torch.testing.assert_close(generator_loss(fake, "non_saturating"), bce(fake, ones))
    torch.testing.assert_close(generator_loss(fake, "saturating"), -bce(fake, zeros))
    margins = (1 - real).clamp(min=0).sum() + (1 + fake).clamp(min=0).sum()
    torch.testing.assert_close(discriminator_loss(real, fake, "hinge", 0.0), margins)
    torch.testing.assert_close(generator_loss(fake, "hinge"), -fake.sum())
