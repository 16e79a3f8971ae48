"""A process of the fork server does what a real one does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import SPIRALS_WORDS, CommandLine
from runs import only_run
from warm import WarmPopen, run_warm
from watching import wait_until

from trainer.run.metrics_file import read_metrics

WORDS = [*SPIRALS_WORDS, "trainer.max_epochs=1", "trainer.log_every_n_steps=1", "run.name=run"]


def written(directory: Path) -> tuple[set[str], list[dict[str, Any]], dict[str, Any]]:
    """Names of a run's files, its metrics without measured speed, and what its record says of itself."""
    run = only_run(directory / "outputs")
    files = {str(path.relative_to(run)) for path in run.rglob("*")}
    metrics = [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in read_metrics(run)]
    record = json.loads((run / "run.json").read_text())
    return files, metrics, {key: record[key] for key in ("hash", "identity", "status")}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_is_that_of_real_processes(
    ranks: int, command_line: CommandLine, real_command_line: CommandLine, tmp_path: Path
) -> None:
    results = []
    for name, start in (("warm", command_line), ("real", real_command_line)):
        (directory := tmp_path / name).mkdir()
        done = start(*WORDS, f"trainer.devices={ranks}", cwd=directory)
        assert done.returncode == 0, done.stderr
        results.append((written(directory), done.stderr))
    assert results[0] == results[1]


STATE = """
import json, os, random, signal, sys
import numpy
tests = [name for name in ("warm", "warm_server", "conftest", "watching") if name in sys.modules]
handlers = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "path": sys.path, "tests": tests, "handlers": handlers,
    "environment": {k: v for k, v in os.environ.items() if k != "LC_CTYPE"},
    "threads": len(os.listdir("/proc/self/task")), "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    "stdin": sys.stdin.read(), "buffering": [sys.stdout.line_buffering, sys.stderr.line_buffering],
}))
print(random.random(), numpy.random.rand(), file=sys.stderr)
sys.exit(3)
"""


def test_its_state_is_that_of_a_new_process(tmp_path: Path) -> None:
    script = tmp_path / "state.py"
    script.write_text(STATE)
    warm = [run_warm([str(script), "a", "b"], cwd=tmp_path, env={"ADDED": "1"}) for _ in range(2)]
    environment = {**os.environ, "ADDED": "1"}
    command = [sys.executable, str(script), "a", "b"]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    real = subprocess.run(command, cwd=tmp_path, env=environment, check=False, **pipes)
    assert real.returncode == warm[0].returncode == 3
    assert json.loads(warm[0].stdout) == json.loads(real.stdout)
    assert warm[0].stderr != warm[1].stderr, "two processes draw the same random numbers"


ENDLESS = "import time\nprint('begun', flush=True)\ntime.sleep(600)\n"


def test_signals_reach_it_and_its_end_is_seen(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, -15)):
        with WarmPopen([str(script)], cwd=tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(60) == code
        assert not psutil.pid_exists(process.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        run_warm([str(script)], cwd=tmp_path, timeout_s=0.5)


def test_processes_end_with_the_one_that_asked_for_them(tmp_path: Path) -> None:
    """Also the server: nothing is left of a test session that was killed."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    session = (
        "import time\nfrom warm import WarmPopen\n"
        "process = WarmPopen(['endless.py'], cwd='.')\n"
        "print(process.pid, flush=True)\ntime.sleep(600)\n"
    )
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-c", session]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        started = psutil.Process(int(asking.stdout.readline()))
        server = started.parent()
        assert server is not None
        asking.kill()
    # A zombie is one that nothing on this machine waits for.
    ended = lambda p: not p.is_running() or p.status() == psutil.STATUS_ZOMBIE  # noqa: E731
    wait_until(lambda: ended(started) and ended(server), 60)


def test_a_variable_that_imports_read_needs_a_real_process(tmp_path: Path) -> None:
    (tmp_path / "home.py").write_text("from huggingface_hub.constants import HF_HOME\nprint(HF_HOME)\n")
    with pytest.raises(ValueError, match="HF_HOME"):
        WarmPopen(["home.py"], cwd=tmp_path, env={"HF_HOME": str(tmp_path)})
    assert run_warm(["home.py"], cwd=tmp_path, env={"HF_HOME": str(tmp_path)}).stdout == f"{tmp_path}\n"
