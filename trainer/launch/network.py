"""Network interfaces of this host, the addresses they carry, and where they lead."""

from __future__ import annotations

import socket
from contextlib import suppress

from trainer.errors import UserError, nearest

LOOPBACK = "127.0.0.1"
# Names of our two rendezvous backends in the registry of torch.distributed.elastic: for one host, for several nodes.
LOOPBACK_BACKEND = "loopback"
NODES_BACKEND = "trainer"
# Debian's /etc/hosts maps a host's own name to this address, which no other host can reach.
OWN_NAME_ADDRESS = "127.0.1.1"
# Belongs to TEST-NET-1 (RFC 5737), which no host uses: packets to it take the default route.
TEST_NET_ADDRESS = "192.0.2.1"


def interfaces() -> dict[str, list[str]]:
    """Addresses of this host by interface."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }


def interface_address(interface: str) -> str:
    """First address of an interface, IPv4 before IPv6. Raises: UserError: there is no such interface here."""
    found = interfaces()
    if not found.get(interface):
        usable = [name for name, addresses in found.items() if addresses]
        advice = nearest(interface, usable)
        raise UserError(f"launch.interface={interface}: {socket.gethostname()} has none with an address; {advice}")
    return sorted(found[interface], key=lambda address: ":" in address)[0]


def interface_of(address: str) -> str | None:
    """The interface that carries an address, if it is one of this host's."""
    return next((name for name, addresses in interfaces().items() if address in addresses), None)


def source_address(address: str) -> str:
    """This host's address on the route to another one. Nothing is sent.

    Raises: UserError: there is no route.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError as error:
            raise UserError(f"launch.endpoint: no route from {socket.gethostname()} to {address} ({error})") from error
        return str(probe.getsockname()[0])


def resolve(host: str) -> str | None:
    """An address of a host, IPv4 before IPv6; None where its name cannot be resolved."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return None
    address = sorted((str(entry[4][0]) for entry in found), key=lambda address: ":" in address)[0]
    if address == OWN_NAME_ADDRESS and host != OWN_NAME_ADDRESS:
        with suppress(UserError):
            return source_address(TEST_NET_ADDRESS)
    return address


def parse_endpoint(endpoint: str) -> tuple[str, int] | None:
    """HOST:PORT as (host, port); None where it is not of that form."""
    host, _, port = endpoint.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() and 0 < int(port) < 2**16 else None


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens on one address of this host only. Raises: OSError: it is not this host's, or in use."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)
