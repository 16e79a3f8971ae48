"""Noise keyed by the sample, not by rank or batch, so that it does not depend on the number of ranks."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Uses of randomness that must not share draws. TRAINING is the first of one stream per discriminator step."""

    REAL_IMAGES = 1
    GRID = 2
    SCORE = 3
    PREDICT = 4
    TRAINING = 16


def walk(start: np.ndarray, end: np.ndarray, num_steps: int) -> np.ndarray:
    """Points on the great circle between two points, ends included (Shoemake 1985); a Gaussian's mass is near it.

    Shapes: start, end (L,), not parallel -> (num_steps, L) float32.
    """
    cosine = np.dot(start, end) / (np.linalg.norm(start) * np.linalg.norm(end))
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    share = np.linspace(0.0, 1.0, num_steps)[:, None]
    return ((np.sin((1 - share) * angle) * start + np.sin(share * angle) * end) / np.sin(angle)).astype(np.float32)
