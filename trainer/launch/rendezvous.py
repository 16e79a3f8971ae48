"""Where ranks meet: stores that listen on one address of a host, and a rendezvous that survives a cut link.

torch's own stores listen on every interface. The agent of its c10d rendezvous asks the store about new nodes in the
thread that watches the ranks: on a host that has lost its link to the store, it blocks there for minutes.
"""

from __future__ import annotations

import logging
import socket
import threading
from datetime import timedelta

from torch.distributed import DistNetworkError, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

from trainer.errors import UserError
from trainer.launch.network import (
    LOOPBACK,
    LOOPBACK_BACKEND,
    NODES_BACKEND,
    interface_address,
    interface_of,
    listen,
    parse_endpoint,
    resolve,
    source_address,
)
from trainer.world import World

log = logging.getLogger(__name__)

STORE_TIMEOUT_S = 60
# A node counts as lost after three missed heartbeats.
HEARTBEAT_S = 2
MISSED_HEARTBEATS = 3
# Longest wait for the minimum number of nodes.
JOIN_TIMEOUT_S = 600
# Wait for additional nodes once the minimum has joined.
LAST_CALL_TIMEOUT_S = 10
# Longest wait while this node reports to the store that it leaves; a lost store does not answer.
LEAVE_TIMEOUT_S = 1


def host_store(address: str, port: int, timeout_s: float = STORE_TIMEOUT_S, world_size: int | None = None) -> TCPStore:
    """A store that listens on one address only; port 0 picks a free one. Raises: OSError: the port is in use."""
    listener = listen(address, port)
    port = listener.getsockname()[1]
    # The store owns the descriptor from here on.
    return TCPStore(
        address,
        port,
        world_size,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener.detach(),
    )


def join_store(address: str, port: int, timeout_s: float = STORE_TIMEOUT_S, world_size: int | None = None) -> TCPStore:
    """A connection to a store that another process holds, or will hold soon.

    Raises: UserError: there is none within the timeout.
    """
    timeout = timedelta(seconds=timeout_s)
    try:
        return TCPStore(address, port, world_size, is_master=False, timeout=timeout, wait_for_workers=False)
    except DistNetworkError as error:
        raise UserError(
            f"no process listened at {address}:{port} within {timeout_s:g} s, as seen from {socket.gethostname()}",
            "start the same command on the node that launch.endpoint names, and open the port in its firewall",
        ) from error


class LoopbackRendezvous(StaticTCPRendezvous):
    """torch's static rendezvous for one agent, with a store that no other host can reach."""

    def get_backend(self) -> str:
        """The name it is registered under."""
        return LOOPBACK_BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store for each round: restarted ranks must not read keys of the previous ones."""
        self._store = host_store(LOOPBACK, 0)
        info = RendezvousStoreInfo(LOOPBACK, self._store.port)
        return RendezvousInfo(self._store, self.rank, self.world_size, info)


def create_loopback_rendezvous(parameters: RendezvousParameters) -> LoopbackRendezvous:
    """Factory for elastic's registry: one agent on one host."""
    return LoopbackRendezvous(LOOPBACK, 0, rank=0, world_size=1, run_id=parameters.run_id, timeout=STORE_TIMEOUT_S)


class NodesRendezvous(DynamicRendezvousHandler):
    """torch's c10d rendezvous of several nodes, bound to one address of each."""

    def get_backend(self) -> str:
        """The name it is registered under."""
        return NODES_BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store for each round: torch reuses the first one, where restarted ranks would read old keys."""
        self._bootstrap_store_info = self._shared_tcp_store_server = None
        return super().next_rendezvous()

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:
        return host_store(master_addr, master_port)

    def num_nodes_waiting(self) -> int:
        """Waiting nodes as of the last heartbeat: a query now would block if the store's host is lost."""
        return len(self._state_holder.state.wait_list)

    def shutdown(self) -> bool:
        """Leave the rendezvous, without waiting for a lost store. Returns: whether the store has confirmed it."""
        leaving = threading.Thread(target=super().shutdown, daemon=True)
        leaving.start()
        leaving.join(LEAVE_TIMEOUT_S)
        return not leaving.is_alive()


def create_nodes_rendezvous(parameters: RendezvousParameters) -> NodesRendezvous:
    """Factory for elastic's registry: one of several nodes' agents; `--rdzv-conf=interface=NAME` binds it.

    Raises: UserError: the endpoint or the interface is wrong, or no process listens there.
    """
    endpoint = parse_endpoint(parameters.endpoint)
    address = resolve(endpoint[0]) if endpoint else None
    if endpoint is None or address is None:
        raise UserError(f"launch.endpoint={parameters.endpoint}: must be HOST:PORT with a host that has an address")
    interface = parameters.get("interface")
    own = interface_address(interface) if interface else source_address(address)
    store = _meet(address, endpoint[1], interface)
    timeout = RendezvousTimeout(
        join=timedelta(seconds=float(parameters.get("join_timeout", JOIN_TIMEOUT_S))),
        last_call=timedelta(seconds=float(parameters.get("last_call_timeout", LAST_CALL_TIMEOUT_S))),
    )
    return NodesRendezvous.from_backend(
        parameters.run_id,
        store,
        C10dRendezvousBackend(store, parameters.run_id),
        parameters.min_nodes,
        parameters.max_nodes,
        parameters.local_addr or own,
        timeout,
        keep_alive_interval=HEARTBEAT_S,
        keep_alive_max_attempt=MISSED_HEARTBEATS,
    )


def _meet(address: str, port: int, interface: str | None) -> TCPStore:
    """Host the store where the endpoint is an address of this host, else join it."""
    if interface_of(address) is not None:
        check_interface(address, port, interface)
        try:
            return host_store(address, port)
        except OSError:
            # Another agent of this host hosts it already.
            log.info("joining the store at %s:%d", address, port)
    return join_store(address, port)


def step_store(world: World, interface: str | None, timeout_s: float) -> TCPStore:
    """The store of ranks that srun has started, hosted by rank 0. torch's own would listen on every interface.

    Raises: UserError: rank 0 cannot listen there.
    """
    address, port = resolve(world.master_addr) or world.master_addr, world.master_port
    if world.rank != 0:
        return join_store(address, port, timeout_s, world.world_size)
    check_interface(address, port, interface)
    try:
        return host_store(address, port, timeout_s, world.world_size)
    except OSError as error:
        raise UserError(
            f"launch.endpoint: rank 0 on {socket.gethostname()} cannot listen at {address}:{port} ({error.strerror})",
            "set launch.endpoint=HOST:PORT to another address of the first node, or to a free port",
        ) from error


def check_interface(address: str, port: int, interface: str | None) -> None:
    """Raises: UserError: an address of this host is not on the configured interface."""
    carrier = interface_of(address)
    if interface is not None and carrier != interface:
        raise UserError(
            f"launch.endpoint: {address} is on {carrier}, and launch.interface={interface}",
            f"use {socket.gethostname()}'s address there: launch.endpoint={interface_address(interface)}:{port}",
        )
