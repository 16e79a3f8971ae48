"""Batches: from a data set to a training step."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """The samples of one forward and backward on one rank; a data set adds its tensors.

    indices (B,) int64: positions in the data set, also the key of each sample's random draws. Rows from num_valid on
    are fillers, needed because every rank must call the network equally often; no sum may include them.
    """

    indices: Tensor
    num_valid: int
    epoch: int

    def to(self, device: torch.device) -> Self:
        """Copy to a device; copies from pinned memory overlap with computation."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy to page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def _map(self, function) -> Self:  # noqa: ANN001
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)})


B = TypeVar("B", bound=MicroBatch)
B_co = TypeVar("B_co", bound=MicroBatch, covariant=True)


@dataclass
class StepBatch(Generic[B]):
    """One rank's share of one optimizer step.

    micro_batches: in order, at least one. num_samples: valid samples of the step over all ranks. Every rank divides its
    summed loss by it, so that the gradient is the global mean for any split.
    """

    micro_batches: list[B]
    num_samples: int

    def to(self, device: torch.device) -> StepBatch[B]:
        """All micro-batches on a device."""
        return StepBatch([micro.to(device) for micro in self.micro_batches], self.num_samples)

    def pin_memory(self) -> StepBatch[B]:
        """All micro-batches in page-locked memory."""
        return StepBatch([micro.pin_memory() for micro in self.micro_batches], self.num_samples)


class Gatherable(Protocol[B_co]):
    """A data set that gathers a batch in one vectorised call."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> B_co:
        """The samples at `indices` (B,) int64 as one micro-batch."""
        ...
