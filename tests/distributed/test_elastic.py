"""Ranks that die, nodes that leave and join: the run continues with the same global batch, and every sample once."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
from warm import WarmPopen
from watching import WATCHED_WORDS, free_port, history, last_step, wait_until, written_lines

pytestmark = pytest.mark.slow

NUM_POINTS, GLOBAL_SIZE = 2555, 32
# Two ranks do not divide it.
ODD_SIZE = 33
WORDS = [
    *WATCHED_WORDS,
    "trainer.max_epochs=1",
    f"data.num_points={NUM_POINTS}",
    "checkpoint.every_n_steps=4",
    "launch.max_restarts=2",
    "run.name=watched",
]


def start(directory: Path, *words: str) -> WarmPopen:
    (directory / "watch").mkdir(exist_ok=True)
    return WarmPopen(
        ["-m", "trainer", *WORDS, *words],
        cwd=directory,
        env={"WATCH": str(directory / "watch"), "STEP_S": "0.1"},
        stderr=subprocess.STDOUT,
    )


def check_history(directory: Path, global_size: int) -> None:
    steps = history(directory / "watch")
    assert list(steps) == list(range(1, -(-NUM_POINTS // global_size) + 1))
    assert all(len(samples) == global_size for samples in list(steps.values())[:-1])
    assert sorted(index for samples in steps.values() for index in samples) == list(range(NUM_POINTS))
    record = json.loads((directory / "outputs" / "watched" / "watched" / "run.json").read_text())
    assert record["status"] == "finished"


def kill(process: WarmPopen) -> None:
    """As if its host had lost power: the ranks die with their parent."""
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(ranks, timeout=15)
    assert alive == []


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_dead_rank_restarts_its_group(tmp_path: Path) -> None:
    run = start(tmp_path, "trainer.devices=2", f"batch.global_size={GLOBAL_SIZE}")
    watch = tmp_path / "watch"
    wait_until(lambda: last_step(watch) >= 6, 90, lambda: run.poll() is None)
    ranks = psutil.Process(run.pid).children()
    ranks[1].send_signal(signal.SIGKILL)
    output, _ = run.communicate(timeout=120)

    assert run.returncode == 0, output
    assert "restart 1 of 2" in output
    assert {line["world_size"] for line in written_lines(watch)} == {2}
    check_history(tmp_path, GLOBAL_SIZE)


def test_a_run_continues_on_two_nodes_then_one_then_two(tmp_path: Path) -> None:
    port = free_port()
    nodes = ("launch.min_nodes=1", "launch.max_nodes=2")
    words = (f"launch.endpoint=127.0.0.1:{port}", *nodes, f"batch.global_size={ODD_SIZE}")
    watch = tmp_path / "watch"

    def sizes() -> list[int]:
        return [line["world_size"] for line in written_lines(watch)]

    # The node that holds the store is the one that must stay.
    first = start(tmp_path, *words)
    wait_until(lambda: is_listening(port), 60, lambda: first.poll() is None)
    second = start(tmp_path, *words)
    wait_until(lambda: last_step(watch) >= 6, 90, lambda: first.poll() is None)
    kill(second)
    wait_until(lambda: sizes()[-4:] == [1] * 4, 90, lambda: first.poll() is None)
    second = start(tmp_path, *words)
    outputs = [process.communicate(timeout=150)[0] for process in (first, second)]

    assert [first.returncode, second.returncode] == [0, 0], "\n".join(outputs)
    changes = [size for number, size in enumerate(sizes()) if number == 0 or size != sizes()[number - 1]]
    assert changes == [2, 1, 2]
    check_history(tmp_path, ODD_SIZE)
