"""When one of two ranks goes wrong, the other ends soon, nothing stays behind, and the cause is told last."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, SPIRALS

FAULTY = REPOSITORY / "tests" / "fixtures" / "faulty"
WORDS = [
    f"plugins=[{SPIRALS},{FAULTY}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.max_epochs=200",
    "run.name=faulty",
]


def ranks_of(parent: psutil.Process) -> list[psutil.Process]:
    return [child for child in parent.children(recursive=True) if "trainer.rank" in " ".join(child.cmdline())]


def run_faulty(directory: Path, fault: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainer", *WORDS],
        cwd=directory,
        env={**os.environ, "FAULT": fault},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def leftovers(directory: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        try:
            if "trainer" in words and process.cwd() == str(directory):
                found.append(process.info["pid"])
        except (psutil.AccessDenied, psutil.NoSuchProcess, FileNotFoundError):
            continue
    return found


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("sigkill:1:5", 1, "rank 1 was ended by SIGKILL"),
        ("exception:1:5", 1, "ArithmeticError: the planted fault"),
        ("exit:1:5", 1, "rank 1 exited with code 3"),
        ("user:0:5", 2, "data.path=x: the planted mistake"),
    ],
)
def test_one_rank_fails(fault: str, code: int, told: str, tmp_path: Path) -> None:
    done = run_faulty(tmp_path, fault)

    assert done.returncode == code, done.stderr
    assert told in "\n".join(done.stderr.rstrip().split("\n")[-3:]), done.stderr
    assert leftovers(tmp_path) == []
    (run,) = (tmp_path / "outputs" / "faulty").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["attempts"][-1]["cause"] and record["attempts"][-1]["end"]
    if code == 2:
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().split("\n")) <= 3


def test_killing_a_rank_ends_the_rest_within_15_s(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", *WORDS]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as parent:
        ranks = wait_for_training(parent, tmp_path)
        ranks[1].kill()
        killed_at = time.monotonic()
        _, stderr = parent.communicate(timeout=30)
        assert time.monotonic() - killed_at < 15
    assert parent.returncode == 1
    assert "was ended by SIGKILL" in stderr.rstrip().split("\n")[-1]
    assert leftovers(tmp_path) == []


def test_ranks_die_with_their_parent(tmp_path: Path) -> None:
    with started(tmp_path) as parent:
        ranks = wait_for_training(parent, tmp_path)
        parent.kill()
        _, alive = psutil.wait_procs(ranks, timeout=15)
    assert alive == []


def test_sigterm_stops_all_ranks_with_a_checkpoint_and_75(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", *WORDS]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as parent:
        wait_for_training(parent, tmp_path)
        parent.terminate()
        _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == 75, stderr
    run = tmp_path / "outputs" / "faulty" / "faulty"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "stopped"
    assert (run / "checkpoints" / "last" / "manifest.json").exists()
    assert leftovers(tmp_path) == []


def started(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer", *WORDS]
    return subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_training(parent: subprocess.Popen[str], directory: Path) -> list[psutil.Process]:
    """The ranks, once they have logged a step."""
    metrics = directory / "outputs" / "faulty" / "faulty" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists():
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return sorted(ranks_of(psutil.Process(parent.pid)), key=lambda rank: rank.pid)
