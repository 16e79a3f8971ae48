"""Sweeps: which jobs there are, that the same command continues a killed sweep, and searches."""

import errno
import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import SPIRALS_WORDS
from warm import WarmPopen
from watching import WATCHED_WORDS, wait_until, written_lines

from trainer.cli import main
from trainer.config.compose import parse_overrides
from trainer.verbs.sweep.jobs import Job, expand
from trainer.verbs.sweep.table import by_value

SHORT = [*WATCHED_WORDS, "trainer.max_epochs=null", "trainer.max_steps=20", "trainer.val_check_interval=10"]


def start(directory: Path, *words: str, **environment: str) -> WarmPopen:
    (directory / "watch").mkdir(exist_ok=True)
    environment = {"WATCH": str(directory / "watch"), "COLUMNS": "200", **environment}
    return WarmPopen(["-m", "trainer", "-m", *SHORT, *words], cwd=directory, env=environment)


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


def test_the_best_job_is_first_and_one_without_a_value_last() -> None:
    table = [Job(1, [], value=0.2), Job(2, []), Job(3, [], value=0.1), Job(4, [], value=0.2)]
    assert [job.number for job in by_value(table, "min")] == [3, 1, 4, 2]
    assert [job.number for job in by_value(table, "max")] == [1, 4, 3, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1"], "nothing to sweep over"),
        (["optimizer.lr=0.1,-1"], "optimizer.lr=-1"),
        (["optimizer.lr=interval(0.1,1)"], "sweep=optuna"),
        (["launch.timeout_s=1.0,2.0"], "the same for all jobs"),
        (["seed=1,2", "sweep=optuna", "launch=slurm"], "a search chooses by results"),
    ],
)
def test_user_errors_are_printed_before_the_first_job(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], in_directory: Path
) -> None:
    assert main(["-m", *SPIRALS_WORDS, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(in_directory.glob("outputs/sweeps/*/job-*"))


# Stands for a run in the processes of the jobs: it ends as its seed says, before anything is imported.
JOB = """import os, signal, sys
ends = {"seed=1": 0, "seed=2": 1, "seed=3": 75, "seed=4": -signal.SIGKILL}
code = next((code for word, code in ends.items() if word in sys.orig_argv), None)
if code is not None and code < 0:
    os.kill(os.getpid(), -code)
elif code is not None:
    os._exit(code)
"""


def test_a_job_is_recorded_as_it_ended(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_directory / "site").mkdir()
    (in_directory / "site" / "sitecustomize.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(in_directory / "site"))
    words = ["-m", *SPIRALS_WORDS, "seed=1,2,3,4", "sweep.parallel=2"]
    assert main(words) == 1
    assert statuses(in_directory) == ["finished", "failed", "stopped", "failed"]
    assert [job["exit_code"] for job in jobs(in_directory)] == [0, 1, 75, -signal.SIGKILL]
    output = capsys.readouterr()
    assert "job 2 failed with exit code 1: seed=2" in output.err
    assert "job 4 failed with exit code -9: seed=4" in output.err
    assert main(words) == 1
    started = [line for line in capsys.readouterr().out.split("\n") if " of 4: " in line]
    assert started == ["job 2 of 4: seed=2", "job 3 of 4: seed=3", "job 4 of 4: seed=4"]


def test_a_file_system_without_locks_is_named(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(["-m", *SPIRALS_WORDS, "seed=1,2"]) == 2
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def program(directory: Path, name: str, script: str) -> None:
    """Put a program of our own first on the path, in place of SLURM's."""
    (directory / "bin").mkdir(exist_ok=True)
    (directory / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
    (directory / "bin" / name).chmod(0o755)


def test_an_array_is_not_submitted_twice_when_squeue_fails(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *SPIRALS_WORDS, "launch=slurm", "seed=1,2"]
    monkeypatch.setenv("PATH", f"{in_directory / 'bin'}:{os.environ['PATH']}")
    submitted = in_directory / "submitted"
    program(in_directory, "sbatch", f"echo submitted >> {submitted}; echo 7")
    assert main(words) == 0
    assert "job 7: 2 jobs of" in capsys.readouterr().out

    program(in_directory, "squeue", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    assert main(words) == 2
    assert "Unable to contact slurm controller" in capsys.readouterr().err
    program(in_directory, "squeue", "echo 7_1; echo 7_2")
    assert main(words) == 0
    assert "2 jobs still in SLURM's queue" in capsys.readouterr().out
    assert submitted.read_text() == "submitted\n"

    program(in_directory, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert main(words) == 0
    assert submitted.read_text() == "submitted\n" * 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_six_jobs_killed_in_the_third_continue_there(tmp_path: Path) -> None:
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
    # The third saved when the sweep was killed, and continued from there.
    assert num_attempts(tmp_path) == [1, 1, 2, 1, 1, 1]
    steps = [line["step"] for line in written_lines(tmp_path / "watch")]
    assert sorted(steps) == sorted([*range(1, 21)] * 5)

    rows = output.rpartition("┃ job")[2].split("\n")
    table = [line.split("│")[1].strip() for line in rows if line.startswith("│")]
    best = sorted(jobs(tmp_path), key=lambda job: -(job["value"] or 0.0))
    assert table == [str(job["number"]) for job in best]

    repaired = start(tmp_path, *words)
    output, errors = repaired.communicate(timeout=60)
    assert repaired.returncode == 0, output + errors
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
def test_a_search_continues_from_its_storage(tmp_path: Path) -> None:
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
