"""One rank and two, one strategy and another: the same weights. Stopped anywhere and resumed: the same state."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import CommandLine
from safetensors.torch import load_file

from trainer.cli import main
from trainer.faults.stop import StopOnSignal
from trainer.run.files import STATE_FILE

SMALL = [
    "task=dcgan",
    "logger=none",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "model.width=8",
    "model.latent_size=16",
    "task.num_samples=4",
]
# Gradients have norms around 50 at first: larger steps blow rounding up within 20 steps, on one rank too.
SGD = ["optimizer=sgd", "optimizer.lr=0.0005", "optimizer.momentum=0.0", "optimizer.nesterov=false"]
# 1,797 images leave 3 for the last step of an epoch: two on one rank and one on the other.
TWENTY_STEPS = ["batch.global_size=598", "trainer.max_steps=20", "trainer.limit_val_batches=0"]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*SMALL, *SGD, *TWENTY_STEPS, "trainer.devices=1"]) == 0
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (run,) = (folder / "outputs" / "dcgan").iterdir()
    return load_file(run / "model.safetensors")


def two_ranks(command_line: CommandLine, folder: Path, *words: str) -> dict[str, torch.Tensor]:
    done = command_line(*SMALL, *SGD, *TWENTY_STEPS, "trainer.devices=2", *words, timeout_s=280)
    assert done.returncode == 0, done.stderr
    return weights(folder)


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_1", "deepspeed_stage_2"])
def test_two_ranks_are_one(
    strategy: str, tmp_path: Path, command_line: CommandLine, one_rank: dict[str, torch.Tensor]
) -> None:
    two = two_ranks(command_line, tmp_path, f"strategy={strategy}")
    assert one_rank.keys() == two.keys()
    for name, value in one_rank.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_without_synchronised_statistics_they_would_differ(
    tmp_path: Path, command_line: CommandLine, one_rank: dict[str, torch.Tensor]
) -> None:
    """The negative control of the test above."""
    two = two_ranks(command_line, tmp_path, "trainer.sync_batchnorm=false")
    weights_only = [name for name in one_rank if "running" not in name]
    assert max((two[name] - one_rank[name]).abs().max().item() for name in weights_only) > 1e-4


RESUMED = [*SMALL, "batch.global_size=128", "trainer.max_epochs=1", "trainer.val_check_interval=5"]
RESUMED += ["trainer.log_every_n_steps=1", "task.sample_every_n_steps=4", "task.discriminator_steps=2"]


def last_state(folder: Path) -> dict[str, Any]:
    (run,) = (folder / "outputs" / "dcgan").iterdir()
    return torch.load(run / "checkpoints" / "last" / STATE_FILE, weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(RESUMED) == 0
    return folder


@pytest.mark.parametrize("step", [1, 4, 5, 14])
def test_stopping_and_resuming_changes_nothing(
    step: int, uninterrupted: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 steps: a stop after the first one, at a grid, at an evaluation, before the last one."""
    pending = [step]

    def stop(self: StopOnSignal, trainer: pl.Trainer, *rest: Any) -> None:
        if pending and trainer.global_step + 1 == pending[0]:
            pending.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", stop, raising=False)
    assert main(RESUMED) == 75
    assert last_state(in_directory)["global_step"] == step
    assert main(RESUMED) == 0
    expected, resumed = last_state(uninterrupted), last_state(in_directory)
    assert expected["global_step"] == resumed["global_step"] == 15
    assert len(expected["optimizer_states"]) == 2
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(expected[part], resumed[part], part)
    assert samples(uninterrupted) == samples(in_directory)


def samples(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("outputs/dcgan/*/samples/*")}


def assert_equal(one: Any, other: Any, path: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key, value in one.items():
            assert_equal(value, other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for number, value in enumerate(one):
            assert_equal(value, other[number], f"{path}.{number}")
    else:
        assert one == other, path
