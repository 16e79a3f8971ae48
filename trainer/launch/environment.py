"""Environment variables of a rank that torchrun has not set up."""

from __future__ import annotations

import socket

from trainer.config.schema import LaunchConfig
from trainer.launch.network import interface_address, interface_of, resolve, source_address
from trainer.world import World


def loopback_interface() -> str:
    """Name of the loopback interface: lo on Linux, lo0 on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), "lo")


def local_address(world: World, launch: LaunchConfig) -> str:
    """This host's address as the other nodes see it. Raises: UserError: no such interface, or no route."""
    if launch.interface is not None:
        return interface_address(launch.interface)
    return source_address(resolve(world.master_addr) or world.master_addr)


def rank_environment(world: World, launch: LaunchConfig) -> dict[str, str]:
    """The variables that torch.distributed and Lightning read, for a rank that torchrun has not set up.

    Raises: UserError: no such interface, or no route to the other nodes.
    """
    interface = loopback_interface() if world.num_nodes == 1 else interface_of(local_address(world, launch))
    return {
        "RANK": str(world.rank),
        "LOCAL_RANK": str(world.local_rank),
        "WORLD_SIZE": str(world.world_size),
        "LOCAL_WORLD_SIZE": str(world.local_world_size),
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": str(world.master_port),
        **({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}),
    }
