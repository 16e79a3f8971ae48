"""Two network namespaces, connected by a virtual cable that can be cut, are two hosts for torchrun."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS
from netns import Host, ip, two_hosts
from watching import wait_until

from trainer.checkpoint.store import read_manifest
from trainer.run.metrics_file import read_metrics

pytestmark = pytest.mark.slow

TIMEOUT_S = 6.0
LISTENING = "0A"


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


def listening_addresses(pid: int) -> set[str]:
    """Addresses on which any process of a network namespace listens, except loopback."""
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTENING:
            found.add(socket.inet_ntoa(struct.pack("<I", int(fields[1].partition(":")[0], 16))))
    found |= {"::" for line in Path(f"/proc/{pid}/net/tcp6").read_text().splitlines()[1:] if f" {LISTENING} " in line}
    return {address for address in found if not address.startswith("127.")}


def test_a_cut_link_ends_both_sides_and_the_same_command_resumes(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    words = [
        *SPIRALS_WORDS,
        f"launch.timeout_s={TIMEOUT_S}",
        "trainer.max_epochs=null",
        "trainer.max_steps=4000",
        "checkpoint.every_n_steps=50",
        "checkpoint.at_evaluation=false",
        "trainer.enable_progress_bar=false",
        "run.name=cut",
    ]
    run = tmp_path / "outputs" / "spirals" / "cut"
    sides = [host.start(tmp_path, *words) for host in hosts]
    wait_until(lambda: (run / "checkpoints" / "last").exists(), 90, lambda: all(p.poll() is None for p in sides))
    for side, host in zip(sides, hosts, strict=True):
        assert listening_addresses(side.pid) == {host.address}
    ip("-n", hosts[0].name, "link", "set", hosts[0].interface, "down")
    # Without the timeout of the group a side would wait for TCP's own, a quarter of an hour.
    outputs = [side.communicate(timeout=100)[0] for side in sides]
    for number, (output, other) in enumerate(zip(outputs, reversed(hosts), strict=True)):
        assert f"rank {number} has lost its peers: rank {1 - number}" in output, output
        assert f"{other.address}) cannot be reached" in output
    checkpoint = (run / "checkpoints" / "last").resolve()
    saved = read_manifest(checkpoint)["step"]

    ip("-n", hosts[0].name, "link", "set", hosts[0].interface, "up")
    sides = [host.start(tmp_path, *words) for host in hosts]
    outputs = [side.communicate(timeout=120)[0] for side in sides]
    assert [side.returncode for side in sides] == [0, 0], "\n".join(outputs)
    assert f"resuming from {checkpoint.name}" in outputs[0] + outputs[1]
    steps = [line["step"] for line in read_metrics(run) if "train/loss" in line]
    assert steps == list(range(10, 4001, 10)), f"after {saved}"
