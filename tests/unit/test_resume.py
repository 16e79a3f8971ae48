"""A run that is stopped or killed anywhere and started again by the same command ends as if it never had been."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SPIRALS
from safetensors.torch import load_file
from watching import run_forked

from trainer.checkpoint.callback import Checkpointing
from trainer.cli import main
from trainer.engine import train as engine
from trainer.generators import capture_random_state, restore_random_state
from trainer.run.files import STATE_FILE
from trainer.run.metrics_file import read_metrics

# 500 points in steps of 32: 16 steps an epoch, evaluated every 5 steps and at the end, in two batches; a line of
# training metrics every 3 steps. So stops fall on every kind of boundary.
WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "model.dropout=0.3",
    "data.num_test=50",
    "batch.eval_size=60",
    "trainer.max_epochs=2",
    "trainer.val_check_interval=5",
    "trainer.log_every_n_steps=3",
    "trainer.enable_progress_bar=false",
]
# Ends within the second epoch, and not at an evaluation of the cadence.
SHORT = [*WORDS, "trainer.max_steps=23"]


def only_run(directory: Path) -> Path:
    (run,) = (directory / "outputs" / "faulty").iterdir()
    return run


def completed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(words) == 0
    return only_run(directory)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return completed(WORDS, tmp_path_factory)


@pytest.fixture(scope="module")
def uninterrupted_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return completed(SHORT, tmp_path_factory)


def metric_lines(run: Path) -> list[str]:
    """metrics.jsonl without timings."""
    return [json.dumps({n: v for n, v in line.items() if not n.startswith("perf/")}) for line in read_metrics(run)]


def assert_same(run: Path, expected: Path) -> None:
    ours, theirs = load_file(run / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert metric_lines(run) == metric_lines(expected)
    assert progress(run) == progress(expected)


def progress(run: Path) -> dict[str, Any]:
    """What Lightning has counted: a count that is off ends a run too early or too late after a later resume."""
    state = torch.load(run / "checkpoints" / "last" / STATE_FILE, weights_only=True)
    counts = state["loops"]["fit_loop"]
    # Of the batches of evaluations, which nothing depends on, Lightning counts those of an attempt.
    del counts["epoch_loop.val_loop.batch_progress"]["total"]
    return counts


@pytest.mark.parametrize("step", [1, 5, 7, 16, 21, 31, 32])
def test_stopping_after_any_step_changes_nothing(
    step: int, uninterrupted: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", f"sigterm:0:{step - 1}")
        assert main(WORDS) == 75
    assert f"stopped after step {step}, saved; the same command resumes" in capsys.readouterr().out
    assert not (only_run(in_directory) / "model.safetensors").exists()
    assert main(WORDS) == 0
    assert_same(only_run(in_directory), uninterrupted)


def test_stopping_at_the_end_of_every_epoch_changes_nothing(
    uninterrupted: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (16, 32):
        with monkeypatch.context() as patch:
            patch.setenv("FAULT", f"sigterm:0:{step - 1}")
            assert main(WORDS) == 75
    assert main(WORDS) == 0
    assert_same(only_run(in_directory), uninterrupted)


@pytest.mark.parametrize("fault", ["val_sigterm:0:21", "val_sigterm:0:23", "test_sigterm:0:23"])
def test_stopping_within_an_evaluation_repeats_it(
    fault: str, uninterrupted_short: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", fault)
        assert main(SHORT) == 75
    assert main(SHORT) == 0
    assert_same(only_run(in_directory), uninterrupted_short)


# After the checkpoint of step 5 and a line of step 6; within the final test; both, in a run that ends within an epoch.
@pytest.mark.parametrize("fault", ["sigkill:0:7", "test_sigkill:0:23", "val_sigkill:0:23"])
def test_a_kill_changes_nothing(fault: str, uninterrupted_short: Path, in_directory: Path) -> None:
    assert run_forked(SHORT, in_directory, FAULT=fault) == [-signal.SIGKILL]
    assert main(SHORT) == 0
    assert_same(only_run(in_directory), uninterrupted_short)


def test_a_kill_after_the_test_line_does_not_repeat_it(uninterrupted_short: Path, in_directory: Path) -> None:
    def kill_before_the_weights(rank: int) -> None:
        def killed(*arguments: Any) -> None:
            signal.raise_signal(signal.SIGKILL)

        engine.write_weights = killed

    assert run_forked(SHORT, in_directory, prepare=kill_before_the_weights) == [-signal.SIGKILL]
    assert "test/loss" in metric_lines(only_run(in_directory))[-1]
    assert main(SHORT) == 0
    assert_same(only_run(in_directory), uninterrupted_short)


def test_a_kill_between_the_last_checkpoint_and_the_last_line_loses_nothing(
    uninterrupted_short: Path, in_directory: Path
) -> None:
    def kill_after_the_last_save(rank: int) -> None:
        save = Checkpointing.save

        def save_and_die(self: Checkpointing, trainer: Any, *rest: Any) -> None:
            save(self, trainer, *rest)
            if trainer.global_step == 23:
                signal.raise_signal(signal.SIGKILL)

        Checkpointing.save = save_and_die

    assert run_forked(SHORT, in_directory, prepare=kill_after_the_last_save) == [-signal.SIGKILL]
    assert main(SHORT) == 0
    assert_same(only_run(in_directory), uninterrupted_short)


def test_other_random_numbers_give_other_weights(uninterrupted: Path, in_directory: Path) -> None:
    """The negative control: the comparisons above can fail."""
    assert main([*WORDS, "seed=1"]) == 0
    expected = load_file(uninterrupted / "model.safetensors")
    other = load_file(only_run(in_directory) / "model.safetensors")
    assert any(not torch.equal(tensor, other[name]) for name, tensor in expected.items())


def test_training_and_evaluation_share_one_step_axis(uninterrupted: Path, uninterrupted_short: Path) -> None:
    lines = read_metrics(uninterrupted)
    assert [line["step"] for line in lines if "train/loss" in line] == [*range(3, 33, 3), 32]
    # Every five steps of each epoch's sixteen, and after the last step.
    assert [line["step"] for line in lines if "val/loss" in line] == [5, 10, 15, 21, 26, 31, 32]
    short = read_metrics(uninterrupted_short)
    assert [line["step"] for line in short if "val/loss" in line] == [5, 10, 15, 21, 23]
    assert [line["step"] for line in short if "test/loss" in line] == [23]


def test_all_generators_are_restored() -> None:
    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(),
            float(np.random.rand()),
            float(np.random.randn()),
            float(torch.rand(())),
        ]

    draw()  # leaves a second normal number in the generators of Python and NumPy
    state = capture_random_state()
    first = draw()
    assert draw() != first
    restore_random_state(state)
    assert draw() == first


def test_other_data_are_refused(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", "sigterm:0:6")
        assert main(WORDS) == 75
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setenv("POINTS_SEED", "4")
        assert main(WORDS) == 2
        message = capsys.readouterr().err.strip()
        assert "data" in message and "run.fresh=true" in message and "run.name" in message
        assert "\n" not in message
    assert main(WORDS) == 0


def test_an_interval_beyond_an_epoch_is_a_user_error(in_directory: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*WORDS, "trainer.val_check_interval=17"]) == 2
    error = capsys.readouterr().err
    assert "trainer.val_check_interval=17: an epoch has only 16 steps" in error
    assert len(error.strip().split("\n")) <= 3
