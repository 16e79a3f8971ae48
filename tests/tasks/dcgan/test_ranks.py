"""The same weights on one rank and two under every strategy; the same state when stopped anywhere and resumed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from several_lines import on_ranks

from trainer.checkpoint.weights import read_state
from trainer.cli import main
from trainer.faults.stop import StopOnSignal
from trainer.run.files import STATE_FILE

SMALL = [
    "task=dcgan",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "model.width=8",
    "model.latent_size=16",
    "task.num_samples=4",
]
# Gradients have norms around 50 at first: larger steps amplify rounding errors within a few steps, on one rank too.
SGD = ["optimizer=sgd", "optimizer.lr=0.0005", "optimizer.momentum=0.0", "optimizer.nesterov=false"]
# 1,797 images leave 3 for the last step of an epoch: two on one rank and one on the other.
TWO_EPOCHS = ["batch.global_size=598", "trainer.max_steps=8", "trainer.limit_val_batches=0"]
STRATEGIES = ["ddp", "deepspeed_stage_1", "deepspeed_stage_2"]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*SMALL, *SGD, *TWO_EPOCHS, "trainer.devices=1"]) == 0
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (run,) = (folder / "outputs" / "dcgan").iterdir()
    return load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of two ranks under each strategy, and with statistics that are not synchronised."""
    folder = tmp_path_factory.mktemp("two")
    options = {name: [f"strategy={name}"] for name in STRATEGIES}
    options["not synchronised"] = ["trainer.sync_batchnorm=false"]
    lines = []
    for name, words in options.items():
        (folder / name).mkdir()
        lines.append((folder / name, [*SMALL, *SGD, *TWO_EPOCHS, *words]))
    assert on_ranks(2, folder, lines) == [0] * len(lines)
    return {name: weights(folder / name) for name in options}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_the_weights_of_one(
    strategy: str, one_rank: dict[str, torch.Tensor], two_ranks: dict[str, dict[str, torch.Tensor]]
) -> None:
    two = two_ranks[strategy]
    assert one_rank.keys() == two.keys()
    for name, value in one_rank.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_without_synchronised_statistics_weights_differ(
    one_rank: dict[str, torch.Tensor], two_ranks: dict[str, dict[str, torch.Tensor]]
) -> None:
    """The negative control of the test above."""
    two = two_ranks["not synchronised"]
    weights_only = [name for name in one_rank if "running" not in name]
    assert max((two[name] - one_rank[name]).abs().max().item() for name in weights_only) > 1e-4


NUM_STEPS = 6
RESUMED = [*SMALL, "batch.global_size=16", "trainer.max_epochs=1", f"trainer.limit_train_batches={NUM_STEPS}"]
RESUMED += ["trainer.val_check_interval=3", "task.num_scored=20", "task.sample_every_n_steps=2"]
RESUMED += ["trainer.log_every_n_steps=1", "task.discriminator_steps=2"]


def last_state(folder: Path) -> dict[str, Any]:
    (run,) = (folder / "outputs" / "dcgan").iterdir()
    return read_state(run / "checkpoints" / "last" / STATE_FILE)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(RESUMED) == 0
    return folder


@pytest.mark.parametrize(("step", "format"), [(1, "sharded"), (2, "full"), (3, "sharded"), (5, "full")])
def test_stopping_and_resuming_changes_no_bit(
    step: int, format: str, uninterrupted: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the first step, at a grid, at an evaluation, and before the last step."""
    pending = [step]

    def stop(self: StopOnSignal, trainer: pl.Trainer, *rest: Any) -> None:
        if pending and trainer.global_step + 1 == pending[0]:
            pending.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", stop, raising=False)
    words = [*RESUMED, f"checkpoint.format={format}"]
    assert main(words) == 75
    assert last_state(in_directory)["global_step"] == step
    assert main(words) == 0
    expected, resumed = last_state(uninterrupted), last_state(in_directory)
    assert expected["global_step"] == resumed["global_step"] == NUM_STEPS
    assert len(expected["optimizer_states"]) == 2
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(expected[part], resumed[part], part)
    assert files(uninterrupted, "samples/*") == files(in_directory, "samples/*")
    assert files(uninterrupted, "scores.jsonl") == files(in_directory, "scores.jsonl")
    assert len(files(uninterrupted, "scores.jsonl")) == 1


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(f"outputs/dcgan/*/{pattern}")}


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
