"""Names, interfaces, ports, and the route to Weights & Biases."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from trainer.config.credentials import has_wandb_key
from trainer.config.loggers import wandb_of
from trainer.config.nodes import node_range
from trainer.config.schema import Config, LaunchConfig
from trainer.errors import UserError
from trainer.launch.discover import rendezvous_endpoint
from trainer.launch.network import LOOPBACK, interface_address, interface_of, listen, resolve, source_address
from trainer.launch.submit import submits
from trainer.network import ROUTE_TIMEOUT_S, route_problem
from trainer.verbs.doctor.report import Finding, from_error
from trainer.world import World


def check_network(config: Config, world: World) -> Iterator[Finding]:
    """Ranks can connect: on this node over loopback, on several nodes as configured."""
    several = node_range(config.trainer, config.launch)[1] > 1
    yield _hostname(several)
    yield _loopback()
    if config.launch.interface is not None:
        yield _interface(config.launch.interface, several)
    if several and not submits(config) and not world.joined:
        yield from _endpoint(config.launch)


def check_wandb(config: Config, world: World) -> Iterator[Finding]:
    """There are a key and a route to the server; a run decides by the same two."""
    logger = wandb_of(config)
    if logger is None:
        yield Finding("W&B", "skipped", f"logger=[{','.join(config.logger)}]")
        return
    if logger.mode == "offline":
        yield Finding("W&B", "skipped", "offline, as configured")
        return
    if not has_wandb_key():
        if logger.mode == "auto":
            yield Finding("W&B", "skipped", "offline: no key")
        return
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    problem = route_problem(url)
    if problem is None:
        yield Finding("W&B", "ok", f"a key, and {url} can be reached")
        return
    status = "failure" if logger.mode == "online" else "warning"
    consequence = "it would wait 90 s and end" if logger.mode == "online" else "the run would be offline"
    remedy = "set WANDB_BASE_URL to your server, open the route, or use logger.wandb.mode=offline"
    yield Finding("W&B", status, f"{url} cannot be reached ({problem}): {consequence}", remedy)


def _hostname(several: bool) -> Finding:
    name = socket.gethostname()
    address = resolve(name)
    if address is not None:
        return Finding("host name", "ok", f"{name} is {address}")
    remedy = f"add {name} to /etc/hosts or DNS, or name an address with launch.endpoint"
    return Finding("host name", "failure" if several else "warning", f"{name} has no address", remedy)


def _loopback() -> Finding:
    try:
        with listen(LOOPBACK, 0) as listener:
            port = listener.getsockname()[1]
            socket.create_connection((LOOPBACK, port), timeout=ROUTE_TIMEOUT_S).close()
    except OSError as error:
        remedy = "bring it up with `ip link set lo up`, and allow it in the firewall"
        return Finding("loopback", "failure", f"{LOOPBACK} accepts no connections: {error}", remedy)
    return Finding("loopback", "ok", f"{LOOPBACK} accepts connections")


def _interface(interface: str, several: bool) -> Finding:
    try:
        return Finding("interface", "ok", f"{interface} has {interface_address(interface)}")
    except UserError as error:
        found, _, advice = error.lines[0].partition("; ")
        # Ranks of a single node use loopback, whatever is configured.
        return Finding("interface", "failure" if several else "warning", found, f"launch.interface=NAME, {advice}")


def _endpoint(launch: LaunchConfig) -> Iterator[Finding]:
    """The endpoint of the nodes can be reached from here; where it is on this node, its port is free."""
    try:
        endpoint = rendezvous_endpoint(launch)
        if endpoint is None:
            return
        host, port = endpoint
        address = resolve(host)
        if address is None:
            remedy = "launch.endpoint=HOST:PORT of a node whose name every node can resolve"
            yield Finding("endpoint", "failure", f"{host} has no address", remedy)
            return
        own = source_address(address)
    except UserError as error:
        yield from_error("endpoint", error)
        return
    carrier = interface_of(address)
    if carrier is None:
        yield Finding("endpoint", "ok", f"{host}:{port} is {address}, reached from {own}")
        return
    if launch.interface not in (None, carrier):
        found = f"{address} is on {carrier}, and launch.interface={launch.interface}"
        yield Finding("endpoint", "failure", found, "launch.endpoint=HOST:PORT with the address on that interface")
        return
    try:
        listen(address, port).close()
        yield Finding("endpoint", "ok", f"{address}:{port} on {carrier} is free")
    except OSError as error:
        remedy = "launch.endpoint=HOST:PORT with a free port"
        yield Finding("endpoint", "failure", f"cannot listen at {address}:{port}: {error.strerror}", remedy)
