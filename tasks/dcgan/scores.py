"""Distances between generated and real images in the features of a network.

torchmetrics' versions are tied to their own Inception network, draw the kernel distance's subsets from the global
random state, which an exact resume must not disturb, and count filler rows as samples. Tests compare these formulas
with torchmetrics'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.collectives import all_reduce_sum


class FeatureTable:
    """Features of real and generated images, collected over all ranks, each sample once."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, indices: Tensor, real: Tensor, fake: Tensor) -> None:
        """Shapes: indices (B,) int64, each sample on one rank only; real, fake (B, F)."""
        self.parts.append((indices, real.double(), fake.double()))

    def gather(self, num_features: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Features on every rank, in the order of the samples, so the same on any number of ranks; empties the table.

        Collective: called by all ranks, also by one that has added nothing.
        Returns: real, fake (N, F) float64, N the samples that were added.
        """
        table = torch.zeros(self.num_samples, 2 * num_features + 1, dtype=torch.float64, device=device)
        for indices, real, fake in self.parts:
            table[indices] = torch.cat([real, fake, real.new_ones(len(real), 1)], dim=1)
        self.parts = []
        # A row is written by one rank and zero on the others, so the sum is a gather of unequal counts.
        all_reduce_sum(table)
        real, fake, count = table.split([num_features, num_features, 1], dim=1)
        added = count.squeeze(1) > 0
        return real[added], fake[added]


def frechet_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of two Gaussians fitted to the features (Heusel et al. 2017, equation 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the last trace is that of (C1^(1/2) C2 C1^(1/2))^(1/2), which is
    symmetric and so has real eigenvalues.
    Shapes: real (N, F), fake (M, F) float64, N and M at least 2 -> scalar, never below zero.
    """
    difference = real.mean(0) - fake.mean(0)
    real_cov, fake_cov = torch.cov(real.T), torch.cov(fake.T)
    root = _symmetric_root(real_cov)
    cross = torch.linalg.eigvalsh(root @ fake_cov @ root).clamp(min=0).sqrt().sum()
    return (difference.square().sum() + real_cov.trace() + fake_cov.trace() - 2 * cross).clamp(min=0)


def kernel_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3 over all pairs (Binkowski et al. 2018, section 4).

    Shapes: real (N, F), fake (M, F) float64, N and M at least 2 -> scalar, around zero for equal distributions.
    """
    within = _mean_off_diagonal(_kernel(real, real)) + _mean_off_diagonal(_kernel(fake, fake))
    return within - 2 * _kernel(real, fake).mean()


def _kernel(left: Tensor, right: Tensor) -> Tensor:
    return (left @ right.T / left.shape[1] + 1.0) ** 3


def _mean_off_diagonal(matrix: Tensor) -> Tensor:
    rows = len(matrix)
    return (matrix.sum() - matrix.trace()) / (rows * (rows - 1))


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
