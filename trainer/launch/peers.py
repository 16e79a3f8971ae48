"""Names the peer that was lost when a collective between several nodes has failed.

The error of a failed collective does not say which rank was missing. Every rank therefore listens on a port for as long
as it lives, and after a failure the ranks probe each other's ports.
"""

from __future__ import annotations

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from trainer.collectives import all_gather_json
from trainer.errors import RankFailure
from trainer.launch.network import listen
from trainer.world import World

PROBE_TIMEOUT_S = 1.0
# Words in the errors of gloo, NCCL and the store when a connection fails or times out.
NETWORK = re.compile(r"gloo|NCCL|TCPStore|[Cc]onnection|[Ss]ocket|[Tt]imed out|timeout")


def is_network_error(error: BaseException) -> bool:
    """Whether a collective has failed because a connection has."""
    return isinstance(error, RuntimeError) and NETWORK.search(str(error)) is not None


class PeerLost(RankFailure):
    """A rank on another node has ended or cannot be reached."""


@dataclass(frozen=True)
class Peer:
    """Where a rank listens."""

    rank: int
    host: str
    pid: int
    address: str
    port: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host}, {self.address})"


class Peers:
    """The other ranks of a process group, recorded while all of them were alive."""

    def __init__(self, world: World, address: str) -> None:
        """Args: address: of this host, as the other nodes see it. Called on all ranks."""
        self.listener = listen(address, 0)
        # No thread accepts: the kernel completes as many connections as the backlog holds.
        self.listener.listen(world.world_size)
        self.rank, port = world.rank, self.listener.getsockname()[1]
        own = Peer(world.rank, socket.gethostname(), os.getpid(), address, port)
        self.others = [Peer(**peer) for peer in all_gather_json(asdict(own)) if peer["rank"] != world.rank]

    def explain(self, error: BaseException) -> PeerLost | None:
        """Which peers a failed collective has lost; None where the error has another cause or all peers answer."""
        if not is_network_error(error):
            return None
        with ThreadPoolExecutor(len(self.others)) as pool:
            states = dict(zip(self.others, pool.map(_probe, self.others), strict=True))
        # Survivors end by themselves, too: peers that cannot be reached are named before those that have ended.
        for state in ("cannot be reached", "has ended"):
            lost = [str(peer) for peer, found in states.items() if found == state]
            if lost:
                return PeerLost(
                    f"rank {self.rank} has lost its peers: {', '.join(lost)} {state}\n"
                    f"({str(error).strip().splitlines()[0]})\nthe same command resumes from the newest checkpoint"
                )
        return None


def _probe(peer: Peer) -> str:
    try:
        socket.create_connection((peer.address, peer.port), timeout=PROBE_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return "has ended"
    except OSError:
        return "cannot be reached"
    return "is there"
