"""Two network namespaces, connected by a virtual cable: two hosts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str
    interface: str
    address: str

    def start(self, directory: Path, *words: str) -> subprocess.Popen[str]:
        """torchrun on this host."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        meeting = ["--rdzv-backend=trainer", "--rdzv-endpoint=10.77.0.1:29400", "--rdzv-id=test"]
        bound = f"--rdzv-conf=interface={self.interface}"
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *torchrun, *meeting, bound, "-m", "trainer", *words],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Hosts that reach each other, until the block ends. Skips the test without the right to make them."""
    if os.geteuid() != 0:
        pytest.skip("only root makes network namespaces")
    pair = tuple(Host(f"trainer{os.getpid()}{end}", f"cable{end}", f"10.77.0.{end}") for end in (1, 2))
    try:
        for host in pair:
            ip("netns", "add", host.name)
        first, second = pair
        peer = ["type", "veth", "peer", "name", second.interface, "netns", second.name]
        ip("link", "add", first.interface, "netns", first.name, *peer)
        for host in pair:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            ip("-n", host.name, "link", "set", "lo", "up")
            ip("-n", host.name, "link", "set", host.interface, "up")
        yield first, second
    finally:
        for host in pair:
            pids = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                psutil.Process(int(pid)).kill()
            subprocess.run(["ip", "netns", "del", host.name], check=False, timeout=10)
