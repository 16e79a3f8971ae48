"""Min-max decimation: fewer points, the same picture."""

from __future__ import annotations

import numpy as np

MAX_POINTS = 2000


def decimate(y: np.ndarray, max_points: int = MAX_POINTS) -> np.ndarray:
    """Choose the points of a series that a line through all of them would show.

    The series is cut into max_points / 2 buckets of neighbours. Of each bucket the smallest and the largest finite
    value are kept, so no spike is lost; the first and the last point are kept as well, and of the values that are not
    finite the first in each bucket, which interrupts the line.

    Args: y: (N,) float. max_points: a series of up to this length is kept as it is.
    Returns: indices into y, (M,) int64, ascending; M <= max_points + 2 where all values are finite.
    """
    if len(y) <= max_points:
        return np.arange(len(y))
    size = -(-len(y) // (max_points // 2))
    rows = -(-len(y) // size)
    # The last bucket is filled up with its last value, which changes neither extreme nor its first position.
    padded = np.concatenate([y, np.full(rows * size - len(y), y[-1])]).reshape(rows, size)
    finite = np.isfinite(padded)
    starts = np.arange(rows) * size
    lowest = starts + np.where(finite, padded, np.inf).argmin(axis=1)
    highest = starts + np.where(finite, padded, -np.inf).argmax(axis=1)
    interrupted = (starts + finite.argmin(axis=1))[~finite.all(axis=1)]
    return np.unique(np.concatenate([[0, len(y) - 1], lowest, highest, interrupted]))


def average(rows: np.ndarray, max_points: int = MAX_POINTS) -> np.ndarray:
    """Mean of neighbouring rows, for series that are stacked: shares that add up to 1 still do.

    Args: rows: (N, C) float. Returns: (M, C), M <= max_points.
    """
    size = max(1, -(-len(rows) // max_points))
    starts = np.arange(0, len(rows), size)
    counts = np.diff(np.append(starts, len(rows)))
    return np.add.reduceat(rows, starts, axis=0) / counts[:, None] if len(rows) else rows
