"""A rendezvous for ranks on one host whose store nobody outside the host can reach."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

LOOPBACK = "127.0.0.1"
BACKEND = "loopback"


class LoopbackRendezvous(StaticTCPRendezvous):
    """torch's own static rendezvous, except for the listening socket: torch binds it to every interface."""

    def get_backend(self) -> str:
        """The name it is registered under."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Open the store at the first call; later rounds of a restarted group share it."""
        if self._store is None:
            listener = socket.create_server((LOOPBACK, 0))
            self.master_port = listener.getsockname()[1]
            # The store owns the descriptor from here on.
            self._store = TCPStore(
                LOOPBACK,
                self.master_port,
                self.world_size,
                is_master=True,
                timeout=timedelta(seconds=60),
                multi_tenant=True,
                master_listen_fd=listener.detach(),
            )
        info = RendezvousStoreInfo(LOOPBACK, self.master_port)
        return RendezvousInfo(PrefixStore(self.run_id, self._store), self.rank, self.world_size, info)


def create_loopback_rendezvous(parameters: RendezvousParameters) -> LoopbackRendezvous:
    """What elastic's registry calls for one agent on one host."""
    return LoopbackRendezvous(LOOPBACK, 0, rank=0, world_size=1, run_id=parameters.run_id, timeout=60)
