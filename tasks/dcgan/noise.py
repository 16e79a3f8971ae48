"""Noise keyed by the sample, not by rank or batch, so that it does not depend on the number of ranks."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from trainer.data.samplers import uniform


class Stream(IntEnum):
    """Uses of randomness that must not share draws. TRAINING is the first of one stream per discriminator step."""

    REAL_IMAGES = 1
    GRID = 2
    SCORE = 3
    PREDICT = 4
    TRAINING = 16


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


def walk(start: np.ndarray, end: np.ndarray, num_steps: int) -> np.ndarray:
    """Points on the great circle between two points, ends included (Shoemake 1985); a Gaussian's mass is near it.

    Shapes: start, end (L,), not parallel -> (num_steps, L) float32.
    """
    cosine = np.dot(start, end) / (np.linalg.norm(start) * np.linalg.norm(end))
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    share = np.linspace(0.0, 1.0, num_steps)[:, None]
    return ((np.sin((1 - share) * angle) * start + np.sin(share * angle) * end) / np.sin(angle)).astype(np.float32)
