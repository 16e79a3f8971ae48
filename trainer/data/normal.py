"""Normal draws keyed by the sample, like the uniform ones of samplers.py."""

from __future__ import annotations

import numpy as np

from trainer.data.samplers import uniform


def normal(seed: int, epoch: int, indices: np.ndarray, size: int, stream: int) -> np.ndarray:
    """Standard normal vectors, one per sample (Box and Muller 1958).

    Args: indices (B,) int64. size: L. Returns: (B, L) float32.
    """
    half = (size + 1) // 2
    radius_draws, angle_draws = np.split(uniform(seed, epoch, indices, 2 * half, stream), 2, axis=1)
    # Draws are in [0, 1): one minus a draw is never zero.
    radius = np.sqrt(-2.0 * np.log1p(-radius_draws))
    angle = np.float32(2.0 * np.pi) * angle_draws
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :size]
