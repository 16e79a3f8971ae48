"""Where ranks meet: stores that listen on one address of a host, and a rendezvous that survives a cut link.

torch's own stores listen on every interface, and the process that listens first is joined (authentication.py). The
agent of its c10d rendezvous asks the store about new nodes in the thread that watches the ranks: on a host that has
lost its link to the store, it blocks there for minutes.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from datetime import timedelta

from torch.distributed import DistNetworkError, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

from trainer.errors import UserError
from trainer.launch.authentication import SignedBackend, answer_challenges, check_store, stop_answering
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
from trainer.launch.secret import SECRET_VARIABLE, given_secret, job_secret, new_secret, sign
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


def host_store(
    address: str,
    port: int,
    secret: str,
    name: str = "",
    timeout_s: float = STORE_TIMEOUT_S,
    world_size: int | None = None,
) -> TCPStore:
    """A store that listens on one address only, and proves to those who join it that it is of this job.

    Args: port: 0 picks a free one. name: under which the others know the store; empty stands for address:port.
    Raises: OSError: the port is in use.
    """
    listener = listen(address, port)
    port = listener.getsockname()[1]
    # The store owns the descriptor from here on.
    store = TCPStore(
        address,
        port,
        world_size,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener.detach(),
    )
    answer_challenges(store, name or f"{address}:{port}", secret)
    return store


def join_store(
    address: str,
    port: int,
    secret: str,
    name: str = "",
    timeout_s: float = STORE_TIMEOUT_S,
    world_size: int | None = None,
) -> TCPStore:
    """A connection to a store that another process of this job holds, or will hold soon.

    Args: name: see host_store.
    Raises: UserError: there is none within the timeout, or it is of somebody else.
    """
    timeout = timedelta(seconds=timeout_s)
    try:
        store = TCPStore(address, port, world_size, is_master=False, timeout=timeout, wait_for_workers=False)
    except DistNetworkError as error:
        raise UserError(
            f"no process listened at {address}:{port} within {timeout_s:g} s, as seen from {socket.gethostname()}",
            "start the same command on the node that launch.endpoint names, and open the port in its firewall",
        ) from error
    check_store(store, name or f"{address}:{port}", secret)
    return store


def agent_store(world: World, timeout_s: float) -> TCPStore | None:
    """The store that the agent of these ranks holds; None where the agent is torch's own, which proves nothing.

    Raises: UserError: the store cannot be reached, or is of somebody else.
    """
    secret = given_secret()
    if secret is None:
        return None
    try:
        return join_store(world.master_addr, world.master_port, secret, timeout_s=timeout_s)
    except UserError as error:
        advice = "torchrun's own rendezvous proves nothing: use --rdzv-backend=trainer, or"
        raise UserError(error.lines[0], f"{advice} start it without {SECRET_VARIABLE}") from error


class LoopbackRendezvous(StaticTCPRendezvous):
    """torch's static rendezvous for one agent, with a store that no other host can reach."""

    def get_backend(self) -> str:
        """The name it is registered under."""
        return LOOPBACK_BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store for each round: restarted ranks must not read keys of the previous ones."""
        stop_answering()
        # The agent has given its ranks the same secret.
        self._store = host_store(LOOPBACK, 0, given_secret() or new_secret())
        info = RendezvousStoreInfo(LOOPBACK, self._store.port)
        return RendezvousInfo(self._store, self.rank, self.world_size, info)


def create_loopback_rendezvous(parameters: RendezvousParameters) -> LoopbackRendezvous:
    """Factory for elastic's registry: one agent on one host."""
    return LoopbackRendezvous(LOOPBACK, 0, rank=0, world_size=1, run_id=parameters.run_id, timeout=STORE_TIMEOUT_S)


class NodesRendezvous(DynamicRendezvousHandler):
    """torch's c10d rendezvous of several nodes, bound to one address of each. secret: of the job."""

    secret: str

    def get_backend(self) -> str:
        """The name it is registered under."""
        return NODES_BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store for each round: torch reuses the first one, where restarted ranks would read old keys."""
        self._bootstrap_store_info = self._shared_tcp_store_server = None
        return super().next_rendezvous()

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:
        return host_store(master_addr, master_port, self.secret)

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
    secret = job_secret(parameters.run_id)
    # For the ranks, which torchrun's agent starts with its own environment.
    os.environ[SECRET_VARIABLE] = secret
    store = _meet(address, endpoint[1], interface, secret, parameters.endpoint)
    timeout = RendezvousTimeout(
        join=timedelta(seconds=float(parameters.get("join_timeout", JOIN_TIMEOUT_S))),
        last_call=timedelta(seconds=float(parameters.get("last_call_timeout", LAST_CALL_TIMEOUT_S))),
    )
    handler = NodesRendezvous.from_backend(
        # The prefix of all keys.
        sign(secret, "run id"),
        store,
        SignedBackend(store, secret),
        parameters.min_nodes,
        parameters.max_nodes,
        parameters.local_addr or own,
        timeout,
        keep_alive_interval=HEARTBEAT_S,
        keep_alive_max_attempt=MISSED_HEARTBEATS,
    )
    handler.secret = secret
    return handler


def _meet(address: str, port: int, interface: str | None, secret: str, name: str) -> TCPStore:
    """Host the store where the endpoint is an address of this host, else join it."""
    if interface_of(address) is not None:
        check_interface(address, port, interface)
        try:
            return host_store(address, port, secret, name)
        except OSError:
            # Another agent of this host hosts it already.
            log.info("joining the store at %s:%d", address, port)
    return join_store(address, port, secret, name, STORE_TIMEOUT_S)


def step_store(world: World, interface: str | None, timeout_s: float) -> TCPStore:
    """The store of ranks that srun has started, hosted by rank 0. torch's own would listen on every interface.

    Raises: UserError: rank 0 cannot listen there.
    """
    address, port = resolve(world.master_addr) or world.master_addr, world.master_port
    # The hosts may know the first one by different addresses.
    name, secret = f"step:{port}", job_secret(f"step:{port}")
    if world.rank != 0:
        return join_store(address, port, secret, name, timeout_s, world.world_size)
    check_interface(address, port, interface)
    try:
        return host_store(address, port, secret, name, timeout_s, world.world_size)
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
