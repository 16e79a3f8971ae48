"""1, 2 and 3 ranks: the same curve, the same metrics for any size of set, one decision to stop, exact resumption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, SPIRALS, SPIRALS_WORDS, CommandLine
from safetensors.torch import load_file
from watching import WATCHED_WORDS, run_forked, written_lines

from trainer.checkpoint import resume
from trainer.checkpoint.store import CheckpointStore, read_manifest
from trainer.faults.signals import STOP_FILE_VARIABLE
from trainer.run.metrics_file import read_metrics

# 61 validation points in batches of 20: the last one has a single point, so some ranks have none.
WORDS = [
    *SPIRALS_WORDS,
    "model.dropout=0.0",
    "trainer.log_every_n_steps=1",
    "batch.eval_size=20",
    "batch.global_size=30",
]
# 16 steps an epoch, evaluated after each in two batches a rank; a stop never hangs longer than the timeout.
TWO_RANKS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=3",
    "model.dropout=0.3",
    "batch.eval_size=30",
    "launch.timeout_s=30.0",
    "run.name=run",
]


def lines_of(directory: Path) -> list[dict[str, float]]:
    """Without measured speed, of which several ranks write more."""
    (run,) = (directory / "outputs" / "spirals").iterdir()
    return [{n: v for n, v in line.items() if not n.startswith("perf/")} for line in read_metrics(run)]


def run_of(directory: Path) -> Path:
    return directory / "outputs" / "faulty" / "run"


def untimed(run: Path) -> list[str]:
    return [json.dumps({n: v for n, v in line.items() if not n.startswith("perf/")}) for line in read_metrics(run)]


def test_curve_and_metrics_do_not_depend_on_the_ranks(command_line: CommandLine, tmp_path: Path) -> None:
    runs = {}
    for ranks in (1, 2, 3):
        directory = tmp_path / str(ranks)
        directory.mkdir()
        words = [*WORDS, f"trainer.devices={ranks}", "data.num_validation=61", "trainer.max_epochs=2"]
        done = command_line(*words, cwd=directory)
        assert done.returncode == 0, done.stderr
        runs[ranks] = lines_of(directory)
    for ranks in (2, 3):
        for one, many in zip(runs[1], runs[ranks], strict=True):
            assert one.keys() == many.keys()
            for name, value in one.items():
                assert many[name] == pytest.approx(value, abs=1e-6), (ranks, name, one["step"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    assert run_forked(TWO_RANKS, directory, ranks=2) == [0, 0]
    return run_of(directory)


def no_files(rank: int) -> None:
    """Rank 1 sees no checkpoints, as a stale view of a network file system has it."""
    if rank:
        CheckpointStore.checkpoints = lambda self: []
        resume.find_damage = lambda checkpoint: "not seen by rank 1"


# The signal reaches rank 1 only: in the step after step 5; in the evaluation after step 16, in its first batch.
@pytest.mark.parametrize(("fault", "step"), [("sigterm:1:5", 7), ("val_sigterm:1:16", 16)])
def test_a_signal_to_one_rank_stops_all_at_one_step(fault: str, step: int, uninterrupted: Path, tmp_path: Path) -> None:
    assert run_forked(TWO_RANKS, tmp_path, ranks=2, FAULT=fault) == [75, 75]
    run = run_of(tmp_path)
    assert read_manifest(run / "checkpoints" / "last")["step"] == step
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"

    assert run_forked(TWO_RANKS, tmp_path, ranks=2, prepare=no_files) == [0, 0]
    expected, resumed = load_file(uninterrupted / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())
    assert untimed(run) == untimed(uninterrupted)


# Of a signal to all ranks before the first step, one gets it while the other is in a collective with it.
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_a_peer_before_the_first_step_is_a_stop(rank: int, uninterrupted: Path, tmp_path: Path) -> None:
    stopped, job = tmp_path / "stopped", str(os.getpid())
    step = {"NUM_TASKS": "2", "NUM_NODES": "1", "NODELIST": "localhost", "TASKS_PER_NODE": "2"}

    def start_as_srun(task: int) -> None:
        for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
        os.environ.update({f"SLURM_STEP_{name}": value for name, value in step.items()})
        os.environ.update(SLURM_JOB_ID=job, SLURM_STEP_ID="0", SLURM_PROCID=str(task), SLURM_LOCALID=str(task))

    by_srun: dict[str, Any] = {"prepare": start_as_srun, STOP_FILE_VARIABLE: str(stopped)}
    assert run_forked(TWO_RANKS, tmp_path, ranks=2, FAULT=f"preempted:{rank}", **by_srun) == [0, 0]
    record = json.loads((run_of(tmp_path) / "run.json").read_text())
    assert (record["status"], record["attempts"][0]["cause"]) == ("stopped", "on request before the first step")
    stopped.unlink()  # as the job script does, which fails if it is not there

    assert run_forked(TWO_RANKS, tmp_path, ranks=2, **by_srun) == [0, 0]
    assert not stopped.exists()
    assert untimed(run_of(tmp_path)) == untimed(uninterrupted)


def test_each_rank_has_its_own_random_stream(tmp_path: Path) -> None:
    environment: dict[str, Any] = {"WATCH": str(tmp_path)}
    words = [*WATCHED_WORDS, "model.dropout=0.3", "trainer.max_steps=4"]
    assert run_forked(words, tmp_path, ranks=2, **environment) == [0, 0]
    states = [(line["step"], line["random_state"]) for line in written_lines(tmp_path)]
    assert sorted(step for step, _ in states) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len({state for _, state in states}) == 8
