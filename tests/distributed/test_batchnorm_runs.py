"""BatchNorm in whole runs of a task without any code for it: one curve if synchronised, exact resumption if not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SPIRALS, CommandLine
from safetensors.torch import load_file
from warm import WarmPopen
from watching import wait_until

from trainer.cli import main
from trainer.run.files import STATE_FILE
from trainer.run.metrics_file import read_metrics

# Four starts of two ranks.
pytestmark = pytest.mark.slow

WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'normalised'}]",
    "task=spirals",
    "task.name=normalised",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "run.name=run",
    # 16 full batches of 32 an epoch: filler rows would count in the statistics.
    "data.num_points=512",
]


def run_of(directory: Path) -> Path:
    return directory / "outputs" / "normalised" / "run"


def losses(directory: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(run_of(directory)) if "train/loss" in line]


def test_synchronised_batchnorm_gives_the_curve_of_one_rank(command_line: CommandLine, in_directory: Path) -> None:
    assert main([*WORDS, "trainer.max_epochs=1"]) == 0
    curves = {"one": losses(in_directory)}
    for value in ("true", "false"):
        (directory := in_directory / value).mkdir()
        words = [*WORDS, "trainer.max_epochs=1", "trainer.devices=2", f"trainer.sync_batchnorm={value}"]
        done = command_line(*words, cwd=directory)
        assert done.returncode == 0, done.stderr
        curves[value] = losses(directory)
    assert curves["true"] == pytest.approx(curves["one"], abs=1e-5)
    assert curves["false"] != pytest.approx(curves["one"], abs=1e-2)


def test_a_stop_by_signal_changes_nothing_without_synchronisation(command_line: CommandLine, tmp_path: Path) -> None:
    words = [*WORDS, "trainer.devices=2", "trainer.max_epochs=20", "trainer.sync_batchnorm=false"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert command_line(*words, cwd=whole).returncode == 0

    null = subprocess.DEVNULL
    with WarmPopen(["-m", "trainer", *words], cwd=stopped, stdout=null, stderr=null) as parent:
        wait_until(lambda: (run_of(stopped) / "metrics.jsonl").exists(), 120, lambda: parent.poll() is None)
        os.kill(parent.pid, signal.SIGTERM)
    assert parent.returncode == 75
    state = torch.load(run_of(stopped) / "checkpoints" / "last" / STATE_FILE, weights_only=True)
    first, second = (buffers["model.1.running_mean"] for buffers in state["rank_buffers"])
    assert not torch.equal(first, second)
    torch.testing.assert_close(state["state_dict"]["model.1.running_mean"], (first + second) / 2, rtol=0, atol=0)
    assert command_line(*words, cwd=stopped).returncode == 0

    assert len(json.loads((run_of(stopped) / "run.json").read_text())["attempts"]) == 2
    expected, resumed = (load_file(run_of(directory) / "model.safetensors") for directory in (whole, stopped))
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    lines = [[{k: v for k, v in line.items() if not k.startswith("perf/")} for line in read_metrics(run_of(d))]
             for d in (whole, stopped)]  # fmt: skip
    assert lines[0] == lines[1]


def test_resnet_is_synchronised(command_line: CommandLine, tmp_path: Path) -> None:
    words = ["task=cnn", "model=resnet18", "logger=none", "run.report=false", "trainer.accelerator=cpu",
             "trainer.log_every_n_steps=1",
             "run.name=run", "trainer.max_steps=2", "optimizer=sgd", "trainer.limit_val_batches=0"]  # fmt: skip
    curves = {}
    for name, more in {
        "one": [],
        "true": ["trainer.devices=2", "trainer.sync_batchnorm=true"],
        "false": ["trainer.devices=2", "trainer.sync_batchnorm=false"],
    }.items():
        (directory := tmp_path / name).mkdir()
        done = command_line(*words, *more, cwd=directory, timeout_s=600)
        assert done.returncode == 0, done.stderr
        lines = read_metrics(directory / "outputs" / "cnn" / "run")
        curves[name] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert curves["true"] == pytest.approx(curves["one"], abs=1e-4)
    assert curves["false"] != pytest.approx(curves["one"], abs=1e-3)
