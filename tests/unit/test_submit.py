"""The job script: its settings, and what it does when the ranks have ended. SLURM's programs are scripts here."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS

from trainer.config.compose import compose_mapping, typed
from trainer.launch.submit import job_script


def script_of(*words: str) -> str:
    config, _ = typed(compose_mapping([*SPIRALS_WORDS, "launch=slurm", *words]))
    return job_script(config, "name", Path("/logs/%x-%j.log"), ["words=(task=spirals)"])


def run_job(directory: Path, text: str, srun: str) -> tuple[int, list[str]]:
    """Run a job script as SLURM does. Returns: (exit code, the commands of SLURM that it has called)."""
    calls = directory / "calls"
    for name, script in {"srun": srun, "scontrol": "true"}.items():
        (directory / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {calls}\n{script}\n')
        (directory / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", "-c", text, "job"]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize("requeue", [True, False])
def test_the_script_asks_slurm_to_requeue_as_configured(requeue: bool) -> None:
    lines = script_of(f"launch.requeue={str(requeue).lower()}").splitlines()
    assert ("#SBATCH --requeue" in lines) == requeue
    assert ("#SBATCH --no-requeue" in lines) == (not requeue)


@pytest.mark.parametrize("requeue", [True, False])
@pytest.mark.parametrize("stop", ["exit 75", 'touch "$TRAINER_STOP_FILE"'])
def test_a_stopped_job_is_queued_again_as_configured(requeue: bool, stop: str, tmp_path: Path) -> None:
    code, calls = run_job(tmp_path, script_of(f"launch.requeue={str(requeue).lower()}"), stop)
    assert code == 75
    assert ("scontrol requeue 7" in calls) == requeue
    assert calls[0].startswith("srun --kill-on-bad-exit=1 ")
    assert calls[0].endswith("-m trainer task=spirals")


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_job_that_has_ended_is_not_queued_again(code: int, tmp_path: Path) -> None:
    ended, calls = run_job(tmp_path, script_of(), f"exit {code}")
    assert ended == code
    assert len(calls) == 1


def test_settings_are_those_of_the_configuration() -> None:
    words = [
        "trainer.accelerator=auto",
        "launch.nodes=2",
        "launch.gpus_per_node=4",
        "launch.stop_before_s=90",
        "batch.global_size=32",
    ]
    lines = script_of(*words, "launch.time_limit=30", "launch.cpus_per_rank=3").splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=3", "--time=30"} <= set(options)
    assert "--signal=USR1@90" in options
    assert "--no-kill" not in options
    assert "#SBATCH --no-kill" in script_of("launch.nodes=2", "launch.min_nodes=1", "launch.starter=torchrun")
