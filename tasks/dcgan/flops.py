"""Floating-point operations of a DCGAN step, counted on the meta device, where nothing is computed."""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.dcgan.networks import Discriminator, Generator


def count_step_flops(
    generator: Generator,
    discriminator: Discriminator,
    latent_size: int,
    shape: tuple[int, int, int],
    discriminator_steps: int,
    reused: bool,
) -> int:
    """FLOPs of one step for each image of the batch, a multiply-add being two.

    The discriminator sees a real and a generated image in each of its updates, and gets gradients of its weights; the
    generator's update takes it frozen, which saves those. Args: reused: whether that update takes the images of the
    discriminator's last one instead of generating them again.
    """
    # In evaluation mode no spectral norm is iterated, which costs the same for any batch.
    generator, discriminator = (cast(nn.Module, deepcopy(n)).to("meta").eval() for n in (generator, discriminator))  # pyright: ignore[reportAssignmentType]
    noise, real = torch.empty(1, latent_size, device="meta"), torch.empty(1, *shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        fake = generator(noise)
        for number in range(discriminator_steps):
            if number > 0:
                fake = generator(noise)
            on_real, on_fake = discriminator(real, fake.detach())
            (on_real + on_fake).sum().backward()
        if not reused:
            fake = generator(noise)
        discriminator.requires_grad_(False)
        discriminator(fake)[0].sum().backward()
    return counter.get_total_flops()
