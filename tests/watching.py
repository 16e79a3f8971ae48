"""What the ranks of the task `watched` have written down."""

import json
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import REPOSITORY, SPIRALS

WATCHED = REPOSITORY / "tests" / "fixtures" / "watched"
WATCHED_WORDS = [
    f"plugins=[{SPIRALS},{WATCHED}]",
    "task=spirals",
    "task.name=watched",
    "logger=none",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
]


def written_lines(folder: Path) -> list[dict[str, Any]]:
    """All lines so far, in the order of time; one that is being written is left out."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().split("\n") if line.endswith("}")]
    return sorted((json.loads(line) for line in lines), key=lambda line: line["time"])


def last_step(folder: Path) -> int:
    """The newest step that any rank has done."""
    return max((line["step"] for line in written_lines(folder)), default=0)


def history(folder: Path) -> dict[int, list[int]]:
    """Samples of each step as the weights have seen them: of a step that was done again, the last time counts."""
    by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in written_lines(folder):
        by_step[line["step"]].append(line)
    return {
        step: [index for line in lines[-lines[-1]["world_size"] :] for index in line["indices"]]
        for step, lines in sorted(by_step.items())
    }


def free_port() -> int:
    """A TCP port of this host that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], bool], timeout_s: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Poll for a condition, as long as whoever is to bring it about lives."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert alive(), "ended before its time"
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)
