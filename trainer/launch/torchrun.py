"""Our rendezvous for `torchrun --rdzv-backend=trainer`: the entry point of the group torchrun.handlers.

torch loads the entry points while its own rendezvous package is being imported, so nothing of it can be imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """The rendezvous of one agent. Raises: UserError: the endpoint or the interface is wrong."""
    from trainer.launch.rendezvous import create_nodes_rendezvous

    return create_nodes_rendezvous(parameters)


def backend() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """The function that torchrun registers for this entry point."""
    return create_handler
