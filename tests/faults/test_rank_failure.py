"""When one of two ranks fails, the other ends too, no process stays behind, and the cause is printed last."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, SPIRALS
from warm import WarmPopen, run_warm
from watching import leftovers, wait_until

FAULTY = REPOSITORY / "tests" / "fixtures" / "faulty"
WORDS = [
    f"plugins=[{SPIRALS},{FAULTY}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.max_epochs=200",
    "run.name=faulty",
]


COMMAND = ["-m", "trainer", *WORDS]


@pytest.mark.parametrize(
    ("fault", "code", "printed"),
    [
        ("sigkill:1:5", 1, "rank 1 was ended by SIGKILL"),
        ("exception:1:5", 1, "ArithmeticError: the planted fault"),
        ("exit:1:5", 1, "rank 1 exited with code 3"),
        ("user:0:5", 2, "data.path=x: the planted user error"),
        ("abort:1:5", 1, "rank 1 was ended by SIGABRT"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("sigkill:0:5", 1, "rank 0 was ended by SIGKILL"),
                ("abort:0:5", 1, "rank 0 was ended by SIGABRT"),
                ("exception:0:5", 1, "ArithmeticError: the planted fault"),
                ("exit:0:5", 1, "rank 0 exited with code 3"),
            ]
        ),
    ],
)
def test_one_rank_fails(fault: str, code: int, printed: str, tmp_path: Path) -> None:
    done = run_warm(COMMAND, cwd=tmp_path, env={"FAULT": fault})
    assert done.returncode == code, done.stderr
    assert printed in "\n".join(done.stderr.rstrip().split("\n")[-3:]), done.stderr
    assert leftovers(tmp_path) == []
    (run,) = (tmp_path / "outputs" / "faulty").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["attempts"][-1]["cause"] and record["attempts"][-1]["end"]
    if code == 2:
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().split("\n")) <= 3


def test_a_rank_that_elastic_ends_before_the_first_step_does_not_say_that_the_run_stopped(tmp_path: Path) -> None:
    done = run_warm(COMMAND, cwd=tmp_path, env={"FAULT": "early:1:0"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "data.path=x: the planted user error\nchange it\n"
    assert json.loads((tmp_path / "outputs" / "faulty" / "faulty" / "run.json").read_text())["status"] == "failed"


def test_killing_a_rank_ends_the_rest(tmp_path: Path) -> None:
    with WarmPopen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL) as parent:
        ranks = wait_for_training(parent, tmp_path)
        ranks[1].kill()
        # Only against hanging: collectives would wait for launch.timeout_s, which is longer.
        _, stderr = parent.communicate(timeout=120)
    assert parent.returncode == 1
    assert "was ended by SIGKILL" in stderr.rstrip().split("\n")[-1]
    assert leftovers(tmp_path) == []


def test_ranks_die_with_their_parent(tmp_path: Path) -> None:
    with WarmPopen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL) as parent:
        ranks = wait_for_training(parent, tmp_path)
        parent.kill()
        _, alive = psutil.wait_procs(ranks, timeout=15)
    assert alive == []


def test_sigterm_stops_all_ranks_with_a_checkpoint_and_75(tmp_path: Path) -> None:
    with WarmPopen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL) as parent:
        wait_for_training(parent, tmp_path)
        parent.terminate()
        _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == 75, stderr
    run = tmp_path / "outputs" / "faulty" / "faulty"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "stopped"
    assert (run / "checkpoints" / "last" / "manifest.json").exists()
    assert leftovers(tmp_path) == []


def test_ctrl_c_says_where_it_stopped_and_a_second_ends_at_once(tmp_path: Path) -> None:
    stopped = interrupted(tmp_path, times=1, fault="none:0:0")
    assert stopped.returncode == 75
    assert re.search(r"^stopped after step \d+, saved; the same command resumes$", stopped.stdout, re.MULTILINE)
    assert "Traceback" not in stopped.stderr
    # Rank 1 hangs in the next step, so that no step's end is ever reached.
    step = int(re.findall(r"stopped after step (\d+)", stopped.stdout)[0])
    ended = interrupted(tmp_path, times=2, fault=f"hang:1:{step + 3}")
    assert ended.returncode == 75
    assert ended.stderr == "stopped; the same command resumes\n"
    assert leftovers(tmp_path) == []
    record = json.loads((tmp_path / "outputs" / "faulty" / "faulty" / "run.json").read_text())
    assert [attempt["cause"].split(",")[0] for attempt in record["attempts"]] == [
        f"on request after step {step}",
        "on request",
    ]


def interrupted(directory: Path, times: int, fault: str) -> subprocess.CompletedProcess[str]:
    """Press Ctrl-C once after a step of this attempt, or twice when a rank hangs."""
    awaited = directory / ("hanging" if times == 2 else "outputs/faulty/faulty/metrics.jsonl")
    command = [*COMMAND, "trainer.log_every_n_steps=1"]
    with WarmPopen(command, cwd=directory, env={"FAULT": fault}) as parent:
        wait_until(awaited.exists, 120, lambda: parent.poll() is None)
        for _ in range(times):
            parent.send_signal(signal.SIGINT)
            time.sleep(0.5)  # two signals of one number that arrive together count as one
        stdout, stderr = parent.communicate(timeout=120)
    return subprocess.CompletedProcess(command, parent.returncode, stdout, stderr)


def wait_for_training(parent: WarmPopen, directory: Path) -> list[psutil.Process]:
    """The ranks, once they have logged a step."""
    metrics = directory / "outputs" / "faulty" / "faulty" / "metrics.jsonl"
    wait_until(metrics.exists, 120, lambda: parent.poll() is None)
    ranks = sorted(psutil.Process(parent.pid).children(), key=lambda rank: rank.pid)
    assert len(ranks) == 2
    return ranks
