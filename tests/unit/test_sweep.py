"""Sweeps: which jobs there are, that they go on where a killed sweep stopped, and searches."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SPIRALS_WORDS
from watching import WATCHED_WORDS, wait_until, written_lines

from trainer.cli import main
from trainer.config.compose import parse_overrides
from trainer.verbs.sweep.jobs import Job, expand
from trainer.verbs.sweep.table import by_value

SHORT = [*WATCHED_WORDS, "trainer.max_epochs=null", "trainer.max_steps=20", "trainer.val_check_interval=10"]


def start(directory: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    (directory / "watch").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "-m", *SHORT, *words],
        cwd=directory,
        env={**os.environ, "WATCH": str(directory / "watch"), "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sweep_directory(directory: Path) -> Path:
    (ledger,) = directory.glob("outputs/sweeps/*/ledger.json")
    return ledger.parent


def jobs(directory: Path) -> list[dict[str, Any]]:
    return json.loads((sweep_directory(directory) / "ledger.json").read_text())["jobs"]


def statuses(directory: Path) -> list[str]:
    found = list(directory.glob("outputs/sweeps/*/ledger.json"))
    return [job["status"] for job in jobs(directory)] if found else []


def num_attempts(directory: Path) -> list[int]:
    runs = sorted(sweep_directory(directory).glob("job-*/*/*/run.json"))
    return [len(json.loads(run.read_text())["attempts"]) for run in runs]


def test_the_last_key_varies_fastest() -> None:
    swept = parse_overrides(["optimizer.lr=0.1,0.3", "model.width=range(8,17,8)"])
    expected = [["optimizer.lr=0.1", "model.width=8"], ["optimizer.lr=0.1", "model.width=16"]]
    assert expand(swept) == [*expected, *([words[0].replace("0.1", "0.3"), words[1]] for words in expected)]


def test_the_best_job_stands_first_and_one_without_a_value_last() -> None:
    table = [Job(1, [], value=0.2), Job(2, []), Job(3, [], value=0.1), Job(4, [], value=0.2)]
    assert [job.number for job in by_value(table, "min")] == [3, 1, 4, 2]
    assert [job.number for job in by_value(table, "max")] == [1, 4, 3, 2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=1"], "nothing to sweep over"),
        (["optimizer.lr=0.1,-1"], "optimizer.lr=-1"),
        (["optimizer.lr=interval(0.1,1)"], "sweep=optuna"),
        (["launch.timeout_s=1.0,2.0"], "the same for all jobs"),
        (["seed=1,2", "sweep=optuna", "launch=slurm"], "a search chooses by results"),
    ],
)
def test_a_mistake_is_told_before_the_first_job(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], in_directory: Path
) -> None:
    assert main(["-m", *SPIRALS_WORDS, *words]) == 2
    assert told in capsys.readouterr().err
    assert not list(in_directory.glob("outputs/sweeps/*/job-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_six_jobs_killed_in_the_third_go_on_there(tmp_path: Path) -> None:
    words = ["model.width=4,8,12,16,20,24", "checkpoint.every_n_steps=5"]
    killed = start(tmp_path, *words, STEP_S="0.05", FAIL_AT_WIDTH="20")

    def third_is_training() -> bool:
        return bool(list(tmp_path.glob("outputs/sweeps/*/job-003/*/*/checkpoints/step-*")))

    wait_until(third_is_training, 120, lambda: killed.poll() is None)
    killed.kill()
    killed.communicate()
    assert statuses(tmp_path) == ["finished", "finished", "running", "pending", "pending", "pending"]

    resumed = start(tmp_path, *words, FAIL_AT_WIDTH="20")
    output, errors = resumed.communicate(timeout=200)
    assert resumed.returncode == 1, output + errors
    assert "job 1 of 6" not in output
    assert "job 3 of 6: model.width=12" in output
    assert "job 5 failed with exit code 1: model.width=20" in errors.split("\n")[-2]
    assert statuses(tmp_path) == ["finished"] * 4 + ["failed", "finished"]
    # The third saved when the sweep was killed, and went on from there.
    assert num_attempts(tmp_path) == [1, 1, 2, 1, 1, 1]
    steps = [line["step"] for line in written_lines(tmp_path / "watch")]
    assert sorted(steps) == sorted([*range(1, 21)] * 5)

    rows = output.rpartition("┃ job")[2].split("\n")
    table = [line.split("│")[1].strip() for line in rows if line.startswith("│")]
    best = sorted(jobs(tmp_path), key=lambda job: -(job["value"] or 0.0))
    assert table == [str(job["number"]) for job in best]

    mended = start(tmp_path, *words)
    output, errors = mended.communicate(timeout=60)
    assert mended.returncode == 0, output + errors
    assert [line for line in output.split("\n") if " of 6" in line] == ["job 5 of 6: model.width=20"]


@pytest.mark.slow
def test_two_jobs_at_a_time_with_two_ranks_each(tmp_path: Path) -> None:
    words = ["seed=1,2", "sweep.parallel=2", "trainer.devices=2", "logger=wandb", "logger.mode=offline"]
    together = start(tmp_path, *words)
    output, errors = together.communicate(timeout=120)

    assert together.returncode == 0, output + errors
    runs = sorted(sweep_directory(tmp_path).glob("job-*/*/*/run.json"))
    first, second = (json.loads(run.read_text())["attempts"][0] for run in runs)
    assert max(first["start"], second["start"]) < min(first["end"], second["end"])
    assert first["world_size"] == second["world_size"] == 2
    group = f"group: {sweep_directory(tmp_path).name}"
    assert all(group in (run.parent / "config.yaml").read_text() for run in runs)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_search_goes_on_in_its_storage(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    words = ["sweep=optuna", "sweep.num_trials=4", "optimizer.lr=tag(log,interval(0.01,1))", "model.width=4,8"]
    stopped = start(tmp_path, *words, STEP_S="0.1")
    wait_until(lambda: len(statuses(tmp_path)) == 2 and len(written_lines(tmp_path / "watch")) > 22, 120)
    stopped.send_signal(signal.SIGINT)
    output, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 75, output + errors
    assert statuses(tmp_path) == ["finished", "stopped"]

    resumed = start(tmp_path, *words)
    output, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output + errors
    assert "job 2 of 4" in output
    assert num_attempts(tmp_path) == [1, 2, 1, 1]
    directory = sweep_directory(tmp_path)
    backend = optuna.storages.journal.JournalFileBackend(str(directory / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name=directory.name, storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert [trial.value for trial in study.trials] == [job["value"] for job in jobs(tmp_path)]
    rates = [trial.params["optimizer.lr"] for trial in study.trials]
    assert len(set(rates)) == 4
    assert all(0.01 <= rate <= 1 for rate in rates)
