"""What every test needs: a task of its own that trains in a second, and the command line as a user types it."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer.launch.rank_logs import RankLog

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
SPIRALS = REPOSITORY / "tests" / "fixtures" / "spirals"
# Pictures and the page take most of the time of so short a run.
SPIRALS_WORDS = [f"plugins=[{SPIRALS}]", "task=spirals", "logger=none", "trainer.accelerator=cpu", "run.report=false"]

# One thread a process: tests run several ranks on few cores, and compare numbers that a thread count may change.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
# Processes that tests start in other directories run this checkout, wherever the installed package points to.
# Once: pytest imports this file for itself, and tests import it again.
if os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] != str(REPOSITORY):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """python -m trainer WORDS in a temporary directory, in a process that need not import torch."""
    from warm import run_warm  # its processes have the environment that is set above

    def run(*words: str, cwd: Path = tmp_path, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        return run_warm(["-m", "trainer", *words], cwd=cwd, env=env, timeout_s=timeout_s)

    return run


@pytest.fixture
def real_command_line(tmp_path: Path) -> CommandLine:
    """The same in a new interpreter: for what a test says about the start of a process."""

    def run(*words: str, cwd: Path = tmp_path, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainer", *words],
            cwd=cwd,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


@pytest.fixture
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test runs in a directory of its own, and signal handlers are afterwards what they were."""
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    """A library's first message gives the root logger a handler, here one of the captured output of a single test.

    A command in this process, also of a fixture of several tests, gives it the log of its run, whose directory goes.
    """
    before = list(logging.root.handlers)
    yield
    for each in list(logging.root.handlers):
        if each not in before or isinstance(each, RankLog):
            logging.root.removeHandler(each)
        if isinstance(each, RankLog):
            each.close()
