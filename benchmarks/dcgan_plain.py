"""An ordinary alternating DCGAN loop, as tutorials have it: what the task's step is measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PlainDCGAN:
    """Two networks, two optimizers, three backwards a step, `.item()` on everything that is logged.

    discriminator: images -> (logits,). param_groups: splits a network's parameters, so that optimizer states fit.
    """

    def __init__(self, discriminator: nn.Module, generator: nn.Module, param_groups: Any) -> None:
        self.discriminator, self.generator = discriminator, generator
        adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
        self.optimizer_d = torch.optim.Adam(param_groups("discriminator"), **adam)
        self.optimizer_g = torch.optim.Adam(param_groups("generator"), **adam)
        self.loss_of = nn.BCEWithLogitsLoss()

    def step(self, real: Tensor, noise: Tensor) -> dict[str, float]:
        """Args: real (B, C, H, W) float in [-1, 1]. noise (B, L). Returns: what is logged."""
        ones, zeros = torch.ones(len(real), device=real.device), torch.zeros(len(real), device=real.device)
        self.optimizer_d.zero_grad()
        (on_real,) = self.discriminator(real)
        loss_real = self.loss_of(on_real, ones)
        loss_real.backward()
        fake = self.generator(noise)
        (on_fake,) = self.discriminator(fake.detach())
        loss_fake = self.loss_of(on_fake, zeros)
        loss_fake.backward()
        self.optimizer_d.step()
        self.optimizer_g.zero_grad()
        (judged,) = self.discriminator(fake)
        loss_g = self.loss_of(judged, ones)
        loss_g.backward()
        self.optimizer_g.step()
        return {
            "loss_d": loss_real.item() + loss_fake.item(),
            "d_real": on_real.sigmoid().mean().item(),
            "d_fake_before": on_fake.sigmoid().mean().item(),
            "loss_g": loss_g.item(),
            "d_fake_after": judged.sigmoid().mean().item(),
        }
