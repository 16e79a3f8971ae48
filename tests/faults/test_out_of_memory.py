"""Under a real limit of memory batch.micro_size=auto finds micro-batches that fit, and the curve is theirs."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS
from safetensors.torch import load_file
from two_ranks import in_one_process, only_run
from warm import run_warm

from trainer.run.metrics_file import read_metrics

FAULTY = REPOSITORY / "tests" / "fixtures" / "faulty"
GLOBAL_SIZE, WIDTH = 32768, 1024
# The activations of a layer take 128 MiB for the whole batch; forward and backward hold four of them.
WORDS = [
    f"plugins=[{SPIRALS},{FAULTY}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=3",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=0",
    "data.num_points=40000",
    f"batch.global_size={GLOBAL_SIZE}",
    f"model.width={WIDTH}",
    "model.dropout=0.0",
    "run.name=run",
]


def limited(words: list[str], directory: Path, limit_mib: int) -> subprocess.CompletedProcess[str]:
    """Not a fork of this process: it may hold memory that earlier tests have freed, which no limit counts."""
    return run_warm(["-m", "trainer", *words], cwd=directory, env={"LIMIT_MIB": str(limit_mib)})


def losses(run: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]


@pytest.mark.parametrize(("ranks", "limit_mib"), [(1, 200), pytest.param(2, 170, marks=pytest.mark.slow)])
def test_the_curve_is_that_of_a_fixed_micro_batch(ranks: int, limit_mib: int, tmp_path: Path) -> None:
    (tmp_path / "auto").mkdir()
    done = limited([*WORDS, "batch.micro_size=auto", f"trainer.devices={ranks}"], tmp_path / "auto", limit_mib)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "auto")
    found = json.loads((run / "faults" / "micro_size.json").read_text())["micro_size"]
    share = GLOBAL_SIZE // ranks
    assert found < share and share % found == 0
    assert f"is out of memory with micro-batches of {share}; again with {share // 2}" in done.stderr
    fixed = in_one_process(tmp_path / "fixed", [*WORDS, f"batch.micro_size={found}"])
    assert losses(run) == pytest.approx(losses(fixed), rel=1e-5)
    ours, theirs = load_file(run / "model.safetensors"), load_file(fixed / "model.safetensors")
    assert max(float((ours[name] - tensor).abs().max()) for name, tensor in theirs.items()) < 1e-5
    hashes = [json.loads((directory / "run.json").read_text())["hash"] for directory in (run, fixed)]
    assert hashes[0] == hashes[1], "the search is no part of the experiment"


def test_a_fixed_size_that_does_not_fit_is_a_user_error(tmp_path: Path) -> None:
    done = limited(WORDS, tmp_path, 200)
    assert done.returncode == 2
    assert "batch.micro_size=null: rank 0 is out of memory (" in done.stderr and "Traceback" not in done.stderr
