"""The evaluation split of a set that brings none."""

from __future__ import annotations

import numpy as np

from trainer.errors import UserError

HOLD_OUT_SEED = 0  # not the run's seed: runs with different seeds are compared on the same samples


def hold_out(rows: np.ndarray, labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into two parts, the second with a share `fraction` of every class; the same ones in every run.

    Args: rows (M,) int64. labels (N,) int64, indexed by rows; all equal where there are no classes.
    Returns: both parts in ascending order, neither empty.
    Raises: UserError: there are fewer than two rows.
    """
    if len(rows) < 2:
        count = "1 usable sample" if len(rows) == 1 else "no usable sample"
        raise UserError(f"data: {count}; training and evaluation need at least one each")
    shuffled = np.random.default_rng(HOLD_OUT_SEED).permutation(rows)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    # Evenly spaced picks from rows sorted by class take the same share of each class.
    picked = (np.arange(count) * len(rows)) // count + len(rows) // (2 * count)
    return np.sort(np.delete(by_class, picked)), np.sort(by_class[picked])
