"""The job script: its settings, and what it does when the ranks have ended. SLURM's programs are scripts here."""

import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS_WORDS

from trainer.config.compose import compose_mapping, typed
from trainer.config.schema import Config
from trainer.errors import ConfigError
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


@pytest.mark.parametrize(("code", "ended"), [(2, 2), (75, 1)])
def test_a_job_of_which_a_rank_has_failed_is_not_queued_again(code: int, ended: int, tmp_path: Path) -> None:
    ranks = f'touch "$TRAINER_STOP_FILE" "$TRAINER_STOP_FILE.failed"; exit {code}'
    found, calls = run_job(tmp_path, script_of(), ranks)
    assert found == ended
    assert len(calls) == 1
    assert not list(tmp_path.glob(".stopped-*"))


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


HOSTILE = [
    *("a b", "$(touch hit)", "`touch hit`", "; touch hit", "&& touch hit #", "'; touch hit; '", '"; touch hit; "', "ü"),
    *("a\\", "#", "*", "~", "$HOME", "!x", "-x", "| touch hit", "> hit", "a\tb", "a\nb", "\\'$(touch hit)"),
]


@pytest.fixture(scope="module")
def composed() -> Config:
    return typed(compose_mapping([*SPIRALS_WORDS, "launch=slurm"]))[0]


def hostile_script(composed: Config, name: str = "name", **launch: object) -> str:
    config = replace(composed, launch=replace(composed.launch, **launch))
    return job_script(config, name, Path(config.launch.log_dir), ["words=(task=spirals)"])


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable()])
def test_settings_of_a_job_script_are_no_shell_code(composed: Config, text: str, tmp_path: Path) -> None:
    script = hostile_script(composed, partition=text, account=text, python=text, srun_options=[text])
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    quoted = shlex.quote("--partition=" + text).replace("\\", "\\\\")
    assert f"#SBATCH {quoted}" in lines
    _, calls = run_job(tmp_path, script, "exit 0")
    assert calls[0].split(" ", 2)[2].startswith(f"{text} {text} -m trainer")
    assert not (tmp_path / "hit").exists()


KEYS = ("name", "partition", "account", "log_dir", "python", "time_limit", "sbatch_options", "srun_options")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("text", ["a\ntouch hit", "a\r--uid=0", "a\x1b]0;title\x07", "a\u2028b"])
def test_control_characters_do_not_reach_a_job_script(composed: Config, key: str, text: str) -> None:
    with pytest.raises(ConfigError, match="control characters") as refusal:
        hostile_script(composed, **{key: [text] if key.endswith("options") else text})
    assert len(refusal.value.lines) == 1 and str(refusal.value).isprintable()


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_the_ssh_launcher_quotes_for_every_shell(shell: str, tmp_path: Path) -> None:
    """What stands in for ssh gives the command to a shell, as sshd does; what stands for Python writes its words."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    directory = tmp_path / "it's $(touch hit)"
    directory.mkdir()
    words = tmp_path / "words"
    files = {"ssh": f'#!/bin/sh\nexec {shell} -c "$2"\n', "python": f'#!/bin/sh\nprintf "%s\\0" "$@" > {words}\n'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {"SSH": str(tmp_path / "ssh"), "PYTHON": str(tmp_path / "python"), "RANKS": "1"}
    command = [str(REPOSITORY / "launch" / "torchrun.sh"), "one", *HOSTILE]
    subprocess.run(command, cwd=directory, env={**os.environ, **variables}, check=True, timeout=30)
    assert words.read_text().rstrip("\0").split("\0")[-len(HOSTILE) :] == HOSTILE
    assert [path.name for path in directory.iterdir()] == []
