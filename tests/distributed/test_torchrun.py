"""Whoever starts the ranks, the run is the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS_WORDS
from runs import Facts, facts_of, only_run
from watching import free_port

WORDS = [*SPIRALS_WORDS, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false"]


def run(directory: Path, *command: str, **environment: str) -> Facts:
    done = subprocess.run(
        [*command, *WORDS],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return facts_of(only_run(directory / "outputs"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """python -m trainer on two ranks."""
    facts = run(tmp_path_factory.mktemp("elastic"), sys.executable, "-m", "trainer", "trainer.devices=2")
    assert [step for step, _ in facts.losses] == list(range(1, 33))
    return facts


def test_torchrun_gives_the_same_run(expected: Facts, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert run(tmp_path, *torchrun, "-m", "trainer") == expected


def test_two_hosts_over_ssh_give_the_same_run(expected: Facts, tmp_path: Path) -> None:
    """ssh is what reaches a host; here both are this one, and the shell takes ssh's place."""
    script = [str(REPOSITORY / "launch" / "torchrun.sh"), "one two"]
    shell = tmp_path / "ssh"
    shell.write_text('#!/bin/bash\nexec bash -c "$2"\n')
    shell.chmod(0o755)
    endpoint = f"127.0.0.1:{free_port()}"
    facts = run(tmp_path, *script, SSH=str(shell), PYTHON=sys.executable, RANKS="1", ENDPOINT=endpoint)
    assert facts == expected
