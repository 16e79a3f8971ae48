"""Every command of the README runs, as it stands there, cut to a few steps where it would train for long."""

import re
import shlex
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from conftest import REPOSITORY, SHARED_DATA, CommandLine
from warm import run_warm

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINES = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.split("\n")
    if line.strip()
]
TRAINER = [line.removeprefix("python -m trainer ") for line in LINES if line.startswith("python -m trainer ")]
TRAINER = [line for line in TRAINER if not line.startswith("bench ")]  # run by tests/unit/test_bench.py
# These need a hub, which tests do not have: they are composed, validated and planned.
HUB = ("data=cifar10", "experiment=")
RUN = "outputs/cnn/lenet5-digits-bb7c2407"


def needs_hub(line: str) -> bool:
    return any(mark in line for mark in HUB) and "data.path" not in line


@pytest.mark.parametrize("line", [line for line in TRAINER if needs_hub(line)])
def test_lines_that_need_the_hub_are_planned(line: str, command_line: CommandLine) -> None:
    done = command_line("plan", *shlex.split(line), "trainer.accelerator=cpu", "trainer.devices=1", "logger=none")
    assert done.returncode == 0, done.stderr


def with_cost(line: str) -> ParameterSet:
    """The jobs of a sweep are processes that import everything, and CIFAR-10 is large."""
    takes_long = line.startswith("-m ") or "path/to/cifar10" in line
    return pytest.param(line, marks=[pytest.mark.slow] if takes_long else [])


@pytest.mark.parametrize("line", [with_cost(line) for line in TRAINER if not needs_hub(line) and RUN not in line])
def test_lines_run(line: str, command_line: CommandLine, tmp_path: Path) -> None:
    if "path/to/cifar10" in line:
        if not SHARED_DATA.exists():
            pytest.skip("the copy of CIFAR-10 is not here")
        line = line.replace("path/to/cifar10", str(SHARED_DATA / "cifar10"))
    quick = [] if line.startswith(("--help", "plan")) or "--cfg" in line else ["debug=smoke"]
    done = command_line(*shlex.split(line), *quick, timeout_s=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_torchrun_line_runs(tmp_path: Path) -> None:
    (line,) = [line for line in LINES if line.startswith("torchrun")]
    words = ["-m", "torch.distributed.run", *shlex.split(line)[1:], "debug=smoke"]
    done = run_warm(words, cwd=tmp_path, timeout_s=280)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("outputs/cnn/*/model.safetensors"))


def test_the_default_run_has_the_directory_that_the_readme_shows(command_line: CommandLine, tmp_path: Path) -> None:
    """The whole default run, to the accuracy that is promised; then eval on it, as the README says."""
    assert command_line("task=cnn", timeout_s=280).returncode == 0
    run = tmp_path / RUN
    (listed,) = re.findall(r"outputs/cnn/[\w-]+/\n +(config\.yaml .*)", README)
    assert {file.name for file in run.iterdir()} >= {name.rstrip("/") for name in listed.split()} - {"wandb"}
    done = command_line("eval", f"run={RUN}")
    assert done.returncode == 0, done.stderr
    (accuracy,) = re.findall(r"val/accuracy\s*\W\s*([\d.]+)", done.stdout)
    assert float(accuracy) >= 0.95
    done = command_line("report", f"run={RUN}")
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()
    (line,) = [line for line in TRAINER if f"init.from={RUN}" in line]
    done = command_line(*shlex.split(line), "debug=smoke")
    assert done.returncode == 0, done.stderr
    assert f"weights of {RUN}/model.safetensors: 10 tensors" in done.stdout


def test_every_command_is_known_to_these_tests() -> None:
    other = [line for line in LINES if not line.startswith(("python -m trainer ", "torchrun "))]
    assert other == [
        "make train",
        "make test",
        "python3 -m venv .venv",
        ".venv/bin/python -m pip install --constraint constraints.txt --editable '.[dev]'",
        "source .venv/bin/activate",
    ], "the first two are run by .ci/run, and the rest is what the Makefile does"
