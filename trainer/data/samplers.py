"""Which rank takes which samples in which step.

Samplers are functions of (seed, epoch), not iterators: every step of every epoch can be computed directly, so that a
resumed run computes its next step, and the global order does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Share:
    """One rank among world_size."""

    rank: int
    world_size: int


@dataclass(frozen=True)
class MicroIndices:
    """Indices (B,) int64 of one micro-batch; rows from num_valid on are fillers that no sum includes."""

    indices: np.ndarray
    num_valid: int


class StepSampler(Protocol):
    """The global batches of an epoch."""

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        ...

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """Per step the (B,) int64 indices of its global batch; each sample of the set exactly once."""
        ...


@dataclass(frozen=True)
class ShuffledSampler:
    """A new permutation each epoch, cut into global batches; the last one may be smaller."""

    num_samples: int
    global_size: int
    seed: int

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_samples // self.global_size)

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """Per step the (B,) int64 indices of its global batch, from a permutation of (seed, epoch)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
        return [order[start : start + self.global_size] for start in range(0, self.num_samples, self.global_size)]


@dataclass(frozen=True)
class RepeatedSampler:
    """The first epoch of a sampler in every epoch."""

    sampler: StepSampler

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return self.sampler.num_steps

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """Per step the (B,) int64 indices of its global batch, the same in every epoch."""
        return self.sampler.epoch_batches(0)


def split_step(indices: np.ndarray, share: Share, micro_size: int) -> list[MicroIndices]:
    """One rank's micro-batches of a global batch.

    Ranks take contiguous parts whose sizes differ by at most one. All ranks get equally many micro-batches; a rank
    without a sample repeats one as a filler, with num_valid 0.

    Args: indices (B,) int64: the global batch. micro_size: largest micro-batch.
    """
    parts = np.array_split(indices, share.world_size)
    num_micro = max(1, -(-max(len(part) for part in parts) // micro_size))
    micros = np.array_split(parts[share.rank], num_micro)
    return [MicroIndices(micro if len(micro) else indices[:1], len(micro)) for micro in micros]


def evaluation_batches(num_samples: int, share: Share, batch_size: int) -> list[MicroIndices]:
    """One rank's batches of a whole set, in order: each sample on exactly one rank, equally many batches on each."""
    step = batch_size * share.world_size
    batches: list[MicroIndices] = []
    for start in range(0, num_samples, step):
        indices = np.arange(start, min(start + step, num_samples))
        batches += split_step(indices, share, batch_size)
    return batches


def num_evaluated(num_samples: int, limit: int | float, batch_size: int) -> int:
    """How many samples of a set are evaluated, on any number of ranks.

    Lightning counts the batches of each rank, so that two ranks would evaluate twice as many samples as one.

    Args: limit: an int is a number of batches of batch_size over all ranks, a float a share of the samples.
    """
    if isinstance(limit, int):
        return min(num_samples, limit * batch_size)
    return min(num_samples, math.ceil(num_samples * limit))


def uniform(seed: int, epoch: int, indices: np.ndarray, num_draws: int, stream: int = 0) -> np.ndarray:
    """Independent uniform draws for each sample of an epoch, the same on every rank and in every batch.

    SplitMix64 (Steele, Lea and Flood 2014) as a counter-based generator, keyed by seed, stream, epoch and sample.

    Args: indices (B,) int64. num_draws: D. stream: separates uses that must not share draws.
    Returns: (B, D) float32 in [0, 1).
    """
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed) ^ _mix(np.uint64(epoch) ^ _mix(np.array([stream], dtype=np.uint64))))
        counters = indices.astype(np.uint64)[:, None] * np.uint64(num_draws) + np.arange(num_draws, dtype=np.uint64)
        bits = _mix(_mix(counters) ^ key)
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


def _mix(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
