"""A run that is stopped after any step and started again by the same line ends in the same weights, bit for bit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import SPIRALS_WORDS
from safetensors.torch import load_file

from trainer.cli import main
from trainer.faults.stop import StopOnSignal
from trainer.run.metrics_file import read_metrics

# 500 points in steps of 32: 16 steps an epoch, evaluated every 5 steps, so stops fall on every kind of boundary.
WORDS = [
    *SPIRALS_WORDS,
    "model.dropout=0.3",
    "trainer.max_epochs=2",
    "trainer.val_check_interval=5",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Send this process a real SIGTERM while a given step is running."""
    target: list[int] = []
    original = StopOnSignal.on_train_batch_start if hasattr(StopOnSignal, "on_train_batch_start") else None

    def on_train_batch_start(self: StopOnSignal, trainer: pl.Trainer, *rest: Any) -> None:
        if original is not None:
            original(self, trainer, *rest)
        if target and trainer.global_step + 1 == target[0]:
            target.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", on_train_batch_start, raising=False)
    return target


def only_run(directory: Path) -> Path:
    (run,) = (directory / "outputs" / "spirals").iterdir()
    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(WORDS) == 0
    return only_run(directory)


def curves(run: Path) -> list[dict[str, float]]:
    return [{n: v for n, v in line.items() if not n.startswith("perf/")} for line in read_metrics(run)]


@pytest.mark.parametrize("step", [1, 4, 5, 7, 15, 16, 17, 20, 21, 31, 32])
def test_stopping_after_any_step_changes_nothing(
    step: int, stop_after: list[int], uninterrupted: Path, in_directory: Path
) -> None:
    stop_after.append(step)
    assert main(WORDS) == 75
    run = only_run(in_directory)
    assert not (run / "model.safetensors").exists()

    assert main(WORDS) == 0

    assert only_run(in_directory) == run
    expected, resumed = load_file(uninterrupted / "model.safetensors"), load_file(run / "model.safetensors")
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    assert curves(run) == curves(uninterrupted)


def test_other_random_numbers_give_other_weights(uninterrupted: Path, in_directory: Path) -> None:
    """The negative control: the comparison above can fail."""
    assert main([*WORDS, "seed=1"]) == 0
    expected = load_file(uninterrupted / "model.safetensors")
    other = load_file(only_run(in_directory) / "model.safetensors")
    assert any(not torch.equal(tensor, other[name]) for name, tensor in expected.items())


def test_training_and_evaluation_share_one_step_axis(uninterrupted: Path) -> None:
    lines = read_metrics(uninterrupted)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 33))
    # Every five steps of each epoch's sixteen.
    assert [line["step"] for line in lines if "val/loss" in line] == [5, 10, 15, 21, 26, 31]
