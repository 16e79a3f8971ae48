"""Losses of discriminator and generator, as sums over samples.

Non-saturating is Goodfellow et al. 2014 with the generator's labels flipped, which is the BCE of the DCGAN paper;
saturating is their minimax game; hinge is Lim and Ye 2017, Miyato et al. 2018.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu, softplus

Loss = Literal["non_saturating", "saturating", "hinge"]


def discriminator_loss(real: Tensor, fake: Tensor, loss: Loss, label_smoothing: float) -> Tensor:
    """Sum over samples of the loss on real plus the loss on generated images.

    Args: real, fake (B,): logits. label_smoothing: real images are labelled 1 - label_smoothing (Salimans et al. 2016:
        only on this side), in the losses that have labels.
    """
    real, fake = real.float(), fake.float()
    if loss == "hinge":
        return relu(1.0 - real).sum() + relu(1.0 + fake).sum()
    labels = torch.full_like(real, 1.0 - label_smoothing)
    on_real = binary_cross_entropy_with_logits(real, labels, reduction="sum")
    return on_real + softplus(fake).sum()


def generator_loss(fake: Tensor, loss: Loss) -> Tensor:
    """Sum over samples. Args: fake (B,): the discriminator's logits of generated images."""
    fake = fake.float()
    if loss == "hinge":
        return -fake.sum()
    return -softplus(fake).sum() if loss == "saturating" else softplus(-fake).sum()
