"""What a step asks of a strategy beyond Lightning's own interface, and its answer on a single device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.optim import Optimizer


class NetworkStrategy:
    """Mixed into every strategy: a module's networks are wrapped, exchanged and cleared one by one.

    The defaults are those of a network that no other rank has a part of.
    """

    def accumulating(self, network: str, last: bool) -> AbstractContextManager[object]:
        """Around one forward and backward; gradients of `network` go to the other ranks in a step's `last` only."""
        return nullcontext()

    def clear_gradients(self, optimizer: Optimizer) -> None:
        """After a step."""
        optimizer.zero_grad(set_to_none=True)


class SingleStrategy(NetworkStrategy, SingleDeviceStrategy):
    """One process on one device."""
