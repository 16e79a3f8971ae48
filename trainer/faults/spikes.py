"""Loss spikes: a loss far above the recent ones of its network, found before the update that it would give."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.collectives import all_reduce_sum

WINDOW = 100
# Before so many, a run has no ordinary loss that one could be compared with.
FEWEST = 20
# Losses that are equal have no deviation; a difference in the last digits is no spike.
SMALLEST_DEVIATION = 1e-3  # of the median's size


class LossSpikes:
    """The recent losses of each network, over the global batch; those of skipped updates do not count.

    A loss is a spike where it exceeds the median of the last WINDOW by `limit` median absolute deviations. Both are
    medians, which a spike does not move, and the rule holds for losses of any scale and sign, as those of GANs.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.recent: dict[str, deque[float]] = {}
        # Of the update in progress, on this rank.
        self.sums: dict[str, Tensor] = {}

    def add(self, network: str, loss: Tensor) -> None:
        """Add a micro-batch's share of the global mean; over ranks it is averaged. Shapes: scalar."""
        share = loss.detach().double()
        self.sums[network] = self.sums[network] + share if network in self.sums else share

    def clear(self) -> None:
        """Forget the update in progress."""
        self.sums = {}

    def found(self, network: str) -> str | None:
        """What the spike is, in words, where this update's loss is one; else the loss is a recent one. Collective."""
        total = self.sums.pop(network, None)
        if total is None:
            return None
        values = all_reduce_sum(torch.stack([total, torch.ones_like(total)]))
        loss = float(values[0] / values[1])
        recent = self.recent.setdefault(network, deque(maxlen=WINDOW))
        if len(recent) >= FEWEST:
            median = statistics.median(recent)
            deviation = statistics.median(abs(value - median) for value in recent)
            deviation = max(deviation, SMALLEST_DEVIATION * abs(median))
            if loss > median + self.limit * deviation:
                count = (loss - median) / deviation if deviation else float("inf")
                return f"is {loss:.4g}, {count:.3g} deviations of {deviation:.2g} above the median {median:.4g}"
        recent.append(loss)
        return None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: what a resumed run has to know to decide alike."""
        return {network: list(values) for network, values in self.recent.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.recent = {network: deque(values, maxlen=WINDOW) for network, values in state.items()}
