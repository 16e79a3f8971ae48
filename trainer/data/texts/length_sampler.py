"""Global batches of similar length: little padding, in an order that is random and independent of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LengthGroupedSampler:
    """A `StepSampler` whose global batches contain samples of similar length.

    Each epoch shuffles the whole set, cuts it into pools of `pool_batches` global batches, sorts each pool by length,
    cuts it into global batches and shuffles those. A pool is at most half the set, so that the neighbours of a sample
    change between epochs in small sets too. Within a global batch the order is random, so the shares of ranks and the
    micro-batches have similar lengths.

    lengths: (N,) int64, tokens of each sample. pool_batches: 1 gives plain shuffled batches.
    """

    lengths: np.ndarray
    global_size: int
    pool_batches: int
    seed: int

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.lengths) // self.global_size)

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """See StepSampler."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        pool_size = self.global_size * max(1, min(self.pool_batches, self.num_steps // 2))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool_size):
            pool = order[start : start + pool_size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [rng.permutation(pool[i : i + self.global_size]) for i in range(0, len(pool), self.global_size)]
        return [batches[i] for i in rng.permutation(len(batches))]
