"""A loss that is not finite in one of the two updates of a GAN's step, under each policy."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dcgan_runs import DCGAN, SHORT
from two_ranks import in_one_process, only_run
from watching import run_forked

import tasks.dcgan.module as dcgan
import trainer.checkpoint.writing as writing
from tasks.dcgan.module import DCGANModule
from trainer.cli import main
from trainer.faults.nonfinite import NonFiniteGuard

BAD_STEP, SAVED_STEP, STEPS = 4, 3, 7
NETWORKS = ("discriminator", "generator")
# Every step is saved, and all of them are kept.
WORDS = [
    *DCGAN,
    *SHORT,
    "run.name=run",
    "checkpoint.every_n_steps=1",
    "checkpoint.keep=9",
    "trainer.log_every_n_steps=1",
]


def plant(monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    """The loss of one network is NaN at BAD_STEP, each time that it is computed."""
    step = 0
    training_step = DCGANModule.training_step
    loss = getattr(dcgan, f"{network}_loss")

    def counted(module: DCGANModule, *arguments: Any) -> Any:
        nonlocal step
        step = module.trainer.global_step + 1
        return training_step(module, *arguments)

    def bad(*arguments: Any) -> torch.Tensor:
        return loss(*arguments) * (float("nan") if step == BAD_STEP else 1.0)

    monkeypatch.setattr(DCGANModule, "training_step", counted)
    monkeypatch.setattr(dcgan, f"{network}_loss", bad)


def state_of(run: Path, step: int) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"step-{step:08d}" / "state.ckpt", weights_only=True)


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return state_of(run, step)["state_dict"]


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], prefix: str = "") -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if name.startswith(prefix) and not torch.equal(ours[name], theirs[name])] == []


def moved(run: Path, network: str) -> bool:
    """Whether BAD_STEP has changed a network or its optimizer."""
    before, after = (state_of(run, step) for step in (SAVED_STEP, BAD_STEP))
    names = [name for name in before["state_dict"] if name.startswith(f"{network}.")]
    optimizers = [state["optimizer_states"][NETWORKS.index(network)]["state"] for state in (before, after)]
    same = all(torch.equal(before["state_dict"][name], after["state_dict"][name]) for name in names)
    return not same or str(optimizers[0]) != str(optimizers[1])


def hold_write(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoint of SAVED_STEP is written once the bad step is found. Returns: where that is noted."""
    found = threading.Event()
    write_state, on_found = writing.write_state, NonFiniteGuard.found
    order: list[str] = []

    def write_later(state: dict[str, Any], path: Path) -> None:
        if state["global_step"] == SAVED_STEP and not order:
            order.append("held")
            assert found.wait(60)
            order.append("written")
        write_state(state, path)

    def note(guard: NonFiniteGuard, optimizer: torch.optim.Optimizer) -> None:
        if order == ["held"]:
            order.append("found")
        found.set()
        on_found(guard, optimizer)

    monkeypatch.setattr(writing, "write_state", write_later)
    monkeypatch.setattr(NonFiniteGuard, "found", note)
    return order


def test_rollback_while_a_checkpoint_is_written_is_as_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, "discriminator")
    skipped = in_one_process(tmp_path / "skip", [*WORDS, "faults.on_nonfinite=skip"])
    assert not moved(skipped, "discriminator") and not moved(skipped, "generator")
    order = hold_write(monkeypatch)
    capfd.readouterr()
    words = [*WORDS, "faults.on_nonfinite=rollback", "checkpoint.asynchronous=true"]
    rolled_back = in_one_process(tmp_path / "rollback", words)
    assert order == ["held", "found", "written"]
    assert f"resuming from step-{SAVED_STEP:08d}" in capfd.readouterr().out
    assert_equal(weights_of(skipped, STEPS), weights_of(rolled_back, STEPS))
    assert [json.loads((run / "run.json").read_text())["skipped_steps"] for run in (skipped, rolled_back)] == [[4], [4]]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_stop_names_the_network(
    network: str, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, network)
    assert main(WORDS) == 1
    first = capfd.readouterr().err.rstrip().split("\n")[-3]
    assert re.match(rf"step {BAD_STEP}: the gradient of {network} is not finite; rank 0, .*begins at the loss", first)
    manifest = json.loads((only_run(in_directory) / "checkpoints" / "last" / "manifest.json").read_text())
    assert manifest["step"] == SAVED_STEP


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_killed_run_skips_the_same_updates(
    network: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies two steps after the bad one, and goes on from a checkpoint before it."""
    plant(monkeypatch, network)
    words = [*WORDS, f"faults.on_nonfinite={policy}", f"checkpoint.every_n_steps={SAVED_STEP}"]
    whole = in_one_process(tmp_path / "whole", words)
    (tmp_path / "killed").mkdir()
    killed = run_forked(words, tmp_path / "killed", prepare=lambda rank: kill_at(BAD_STEP + 1))
    assert killed == [-9]
    assert run_forked(words, tmp_path / "killed") == [0]
    assert_equal(weights_of(whole, STEPS), weights_of(only_run(tmp_path / "killed"), STEPS))


def kill_at(step: int) -> None:
    """Let this process die before a step."""
    import os
    import signal

    on_start: Callable[..., None] = NonFiniteGuard.on_train_batch_start

    def die(guard: NonFiniteGuard, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        on_start(guard, trainer, *arguments)

    NonFiniteGuard.on_train_batch_start = die  # in a process of its own


@pytest.mark.slow
def test_the_discriminator_has_moved_where_the_generator_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "generator")
    skipped = in_one_process(tmp_path / "skip", [*WORDS, "faults.on_nonfinite=skip"])
    assert moved(skipped, "discriminator") and not moved(skipped, "generator")
    rolled_back = in_one_process(tmp_path / "rollback", [*WORDS, "faults.on_nonfinite=rollback"])
    assert not moved(rolled_back, "discriminator") and not moved(rolled_back, "generator")
