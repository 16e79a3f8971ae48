"""Ranks started by torchrun, over ssh or by srun give the run of `python -m trainer`, and stop with its exit code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS_WORDS
from runs import Facts, facts_of, only_run
from warm import WarmPopen, run_warm
from watching import WATCHED_WORDS, free_port, last_step, wait_until

WORDS = [
    *SPIRALS_WORDS,
    "data.num_points=64",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
]


def run(directory: Path, *command: str) -> Facts:
    done = run_warm([*command, *WORDS], cwd=directory, timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return facts_of(only_run(directory / "outputs"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """python -m trainer on two ranks."""
    facts = run(tmp_path_factory.mktemp("elastic"), "-m", "trainer", "trainer.devices=2")
    assert [step for step, _ in facts.losses] == list(range(1, len(facts.losses) + 1))
    assert len(facts.losses) >= 2
    return facts


def test_torchrun_gives_the_same_run(expected: Facts, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert run(tmp_path, *torchrun, "-m", "trainer") == expected


@pytest.mark.slow
def test_two_hosts_over_ssh_give_the_same_run(expected: Facts, tmp_path: Path) -> None:
    """ssh is what reaches a host; here both are this one, and the shell takes ssh's place."""
    script = [str(REPOSITORY / "launch" / "torchrun.sh"), "one two"]
    shell = tmp_path / "ssh"
    shell.write_text('#!/bin/bash\nexec bash -c "$2"\n')
    shell.chmod(0o755)
    endpoint = f"127.0.0.1:{free_port()}"
    environment = {"SSH": str(shell), "PYTHON": sys.executable, "RANKS": "1", "ENDPOINT": endpoint}
    subprocess.run([*script, *WORDS], cwd=tmp_path, env={**os.environ, **environment}, timeout=240, check=True)
    assert facts_of(only_run(tmp_path / "outputs")) == expected


def srun(rank: int) -> dict[str, str]:
    """What srun puts into the environment of one of two tasks on a node."""
    step = {"NUM_TASKS": 2, "NUM_NODES": 1, "NODELIST": "localhost", "TASKS_PER_NODE": 2}
    # The job's number decides the port.
    job = {"SLURM_JOB_ID": os.getpid(), "SLURM_STEP_ID": 0, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
    return {name: str(value) for name, value in {**job, **{f"SLURM_STEP_{k}": v for k, v in step.items()}}.items()}


def test_ranks_of_srun_stop_with_exit_code_75(tmp_path: Path) -> None:
    (tmp_path / "watch").mkdir()
    words = [*WATCHED_WORDS, "trainer.max_epochs=3000", "run.name=watched"]
    ranks = [
        WarmPopen(
            ["-m", "trainer", *words],
            cwd=tmp_path,
            env={**srun(rank), "WATCH": str(tmp_path / "watch"), "STEP_S": "0.05"},
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    try:
        wait_until(lambda: last_step(tmp_path / "watch") > 1, 200, lambda: all(rank.poll() is None for rank in ranks))
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [75, 75], "\n".join(outputs)
    record = json.loads((only_run(tmp_path / "outputs") / "run.json").read_text())
    assert (record["status"], record["attempts"][0]["launcher"]) == ("stopped", "slurm")
