"""A rank that makes no step is found and named, whatever holds it, and an evaluation that takes long is left alone."""

import json
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS
from warm import run_warm
from watching import leftovers, wait_until

FAULTY = REPOSITORY / "tests" / "fixtures" / "faulty"
MODULE = FAULTY / "module.py"
TIMEOUT_S = 10
WORDS = [
    f"plugins=[{SPIRALS},{FAULTY}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.devices=2",
    "run.name=run",
    f"launch.hang_timeout_s={TIMEOUT_S}",
]
# Steps for at least two seconds, so that the watchdogs have started.
STEP = 1000


def line_of(code: str) -> int:
    """The number of the only line of the task that has this code."""
    (number,) = [n for n, line in enumerate(MODULE.read_text().split("\n"), 1) if code in line]
    return number


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("sigstop", "signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)", "a signal has stopped the process"),
        (
            "sigstop_crash",
            "signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)",
            "a signal has stopped the process",
        ),
        ("gil", "ctypes.PyDLL(None).sleep(3600)", r"other for \d+ s"),
    ],
)
def test_the_page_names_rank_and_line(kind: str, code: str, says: str, tmp_path: Path) -> None:
    words = ["-m", "trainer", *WORDS, "trainer.max_epochs=2000", "trainer.limit_val_batches=0"]
    done = run_warm(words, cwd=tmp_path, env={"FAULT": f"{kind}:1:{STEP}"})
    assert done.returncode == 1
    first, second, third = done.stderr.rstrip().split("\n")[-3:]
    where = rf"rank 1 is at .*module\.py:{line_of(code)} \(go_wrong\), in step {STEP + 1}, .*"
    assert re.match(rf"no step for \d+ s: {where}{says}", first), done.stderr
    assert re.match(r"rank 0 waits for it in .* at .*:\d+ \(.*\)", second)
    page = (tmp_path / third.removeprefix("stacks of all ranks: ")).read_text()
    assert {"---- rank 0", "---- rank 1"} <= set(page.split("\n"))
    wait_until(lambda: leftovers(tmp_path) == [], 15)
    record = json.loads((tmp_path / "outputs" / "faulty" / "run" / "run.json").read_text())
    assert record["status"] == "failed" and first in record["attempts"][-1]["cause"]


@pytest.mark.slow
def test_a_stalled_thread_of_the_data_is_named(tmp_path: Path) -> None:
    words = ["-m", "trainer", *WORDS, "trainer.max_epochs=2000", "trainer.limit_val_batches=0"]
    done = run_warm(words, cwd=tmp_path, env={"FAULT": f"stalled:1:{STEP}"})
    assert done.returncode == 1
    first, second, _ = done.stderr.rstrip().split("\n")[-3:]
    assert re.search(r"rank 1 is at .*module\.py:\d+ \(gather_or_stall\) in the thread that prepares batches", first)
    assert second.startswith("rank 0 waits for it in ")


@pytest.mark.slow
def test_a_collective_that_one_rank_skips(tmp_path: Path) -> None:
    words = ["-m", "trainer", *WORDS, "trainer.max_epochs=2000", "trainer.limit_val_batches=0"]
    done = run_warm(words, cwd=tmp_path, env={"FAULT": f"lonely:1:{STEP}"})
    assert done.returncode == 1
    first, second, _ = done.stderr.rstrip().split("\n")[-3:]
    assert "in different places, so one has left out a collective" in first, done.stderr
    line = line_of("torch.distributed.all_reduce(torch.zeros(1), group=self.group)")
    assert re.match(rf"rank 0 at .*module\.py:{line} .*; rank 1 at ", second)


@pytest.mark.slow
def test_a_long_evaluation_is_no_hang(tmp_path: Path) -> None:
    words = ["-m", "trainer", *WORDS, "trainer.max_steps=1500", "trainer.val_check_interval=1250"]
    words += ["trainer.check_val_every_n_epoch=null", "trainer.max_epochs=null", "data.num_points=50000"]
    done = run_warm(words, cwd=tmp_path, env={"FAULT": "val_slow:1:1250"})
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("outputs/*/run/faults/hang*"))
