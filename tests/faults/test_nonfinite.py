"""A loss or gradient that is not finite: nothing moves, the page names the cause, and every strategy does the same."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SPIRALS
from safetensors.torch import load_file
from torch import Tensor, nn
from two_ranks import in_one_process, on_two_ranks, only_run
from warm import run_warm

from trainer.cli import main
from trainer.run.metrics_file import read_metrics

FAULTY = REPOSITORY / "tests" / "fixtures" / "faulty"
LR, MOMENTUM, STEPS, BAD_STEP, GLOBAL_SIZE = 0.1, 0.9, 20, 6, 32
WORDS = [
    f"plugins=[{SPIRALS},{FAULTY}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=5",
    "model.dropout=0.0",
    f"optimizer.lr={LR}",
    f"optimizer.momentum={MOMENTUM}",
    "optimizer.weight_decay=0.0",
    "scheduler=constant",
    "run.name=run",
]
# Importing DeepSpeed on two ranks takes longer than all the steps.
SHARDED = ["fsdp2", *(f"deepspeed_stage_{n}" for n in (1, 2, 3))]
STRATEGIES = ["ddp", *(pytest.param(name, marks=pytest.mark.slow) for name in SHARDED)]


def batches() -> tuple[Any, list[np.ndarray]]:
    """The training points, and the global batch of each step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SPIRALS.parent)
        points = importlib.import_module("spirals.data").Points(500, 0.02, seed=1)
    steps: list[np.ndarray] = []
    for epoch in range(2):
        order = np.random.default_rng([0, epoch]).permutation(len(points))
        steps += np.split(order, range(GLOBAL_SIZE, len(points), GLOBAL_SIZE))
    return points, steps[:STEPS]


def weights_by_hand(skipped: int) -> dict[str, Tensor]:
    """Plain PyTorch, without the update of one step."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Dropout(0.0), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True)
    points, steps = batches()
    for step, indices in enumerate(steps, 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(points.points[indices]), points.labels[indices]).backward()
        if step != skipped:
            optimizer.step()
    return {f"model.{name}": tensor.detach() for name, tensor in network.state_dict().items()}


def difference(run: Path, expected: dict[str, Tensor]) -> float:
    """The largest between the run's newest checkpoint and the expected weights."""
    state = torch.load(run / "checkpoints" / "last" / "state.ckpt", weights_only=True)["state_dict"]
    return max(float((state[name] - tensor).abs().max()) for name, tensor in expected.items())


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_skipped_step_is_a_step_without_its_update(
    policy: str, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAULT", f"nan_loss:0:{BAD_STEP - 1}")
    assert main([*WORDS, f"faults.on_nonfinite={policy}", "checkpoint.every_n_steps=4"]) == 0
    run = only_run(in_directory)
    assert difference(run, weights_by_hand(BAD_STEP)) < 1e-6
    assert difference(run, weights_by_hand(BAD_STEP + 1)) > 1e-4
    assert json.loads((run / "run.json").read_text())["skipped_steps"] == [BAD_STEP]
    logged = [line["step"] for line in read_metrics(run) if "train/loss" in line]
    assert logged == [step for step in range(1, STEPS + 1) if step != BAD_STEP]
    assert ("resuming from step-00000005" in capfd.readouterr().out) == (policy == "rollback")


@pytest.mark.parametrize(
    ("kind", "begins"),
    [
        ("nan_input", r"inputs of sample {}: begins at output of model\.0 \(Linear\), 32 of 1024 values"),
        ("nan_loss", r"in a micro-batch of 32, samples {}, .*: begins at the loss"),
        ("nan_gradient", r"in a micro-batch of 32, samples {}, .*: begins at gradient of model\.3\.bias"),
    ],
)
def test_the_default_stops_before_the_update_and_names_where_it_begins(
    kind: str, begins: str, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAULT", f"{kind}:0:{BAD_STEP - 1}")
    assert main(WORDS) == 1
    first, second, third = capfd.readouterr().err.rstrip().split("\n")[-3:]
    sample = batches()[1][BAD_STEP - 1][0]
    assert re.match(rf"step {BAD_STEP}: the gradient of model is not finite; rank 0, {begins.format(sample)}", first)
    page = in_directory / second.removeprefix("samples of each rank: ")
    assert f"{sample}" in page.read_text() and page.parent == only_run(in_directory) / "faults"
    assert "faults.on_nonfinite" in third
    # The evaluation after step 5 has saved.
    manifest = json.loads((only_run(in_directory) / "checkpoints" / "last" / "manifest.json").read_text())
    assert manifest["step"] == BAD_STEP - 1


def test_the_budget_ends(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAULT", "nan_loss:0:3 nan_loss:0:7")
    assert main([*WORDS, "faults.on_nonfinite=skip", "faults.max_skipped_steps=1"]) == 1
    error = capfd.readouterr().err
    assert "skipped (1 of 1)" in error
    assert error.rstrip().endswith("faults.max_skipped_steps=1: so many have been skipped already")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bad_number_on_one_rank_is_skipped_on_both(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", f"nan_loss:1:{BAD_STEP - 1}")
    (tmp_path / "run").mkdir()
    words = [*WORDS, f"strategy={strategy}", "faults.on_nonfinite=skip"]
    on_two_ranks(tmp_path, {tmp_path / "run": words})
    run = only_run(tmp_path / "run")
    assert difference(run, weights_by_hand(BAD_STEP)) < 1e-5
    page = (run / "faults" / f"nonfinite-step-{BAD_STEP:08d}.txt").read_text()
    samples = batches()[1][BAD_STEP - 1]
    assert f"rank 1, in a micro-batch of 16, samples {samples[16]}, " in page
    assert re.search(rf"rank 0\n  micro-batch 0: finite, .*\n +samples {samples[0]}, ", page)


def test_two_ranks_stop_with_the_same_lines(tmp_path: Path) -> None:
    words = [*WORDS, "trainer.devices=2"]
    done = run_warm(["-m", "trainer", *words], cwd=tmp_path, env={"FAULT": f"nan_gradient:1:{BAD_STEP - 1}"})
    assert done.returncode == 1
    lines = done.stderr.strip().split("\n")
    assert re.match(rf"step {BAD_STEP}: .* rank 1, .*begins at gradient of model\.3\.bias", lines[0]), done.stderr
    assert len(lines) == 3


def test_a_run_without_a_fault_is_the_same_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is multiplied by one, and by what would show if it were not one."""
    guarded = in_one_process(tmp_path / "guarded", WORDS)
    monkeypatch.setattr("trainer.faults.nonfinite.NonFiniteGuard.marked", lambda guard, loss: loss)
    plain = in_one_process(tmp_path / "plain", WORDS)
    ours, theirs = (load_file(run / "model.safetensors") for run in (guarded, plain))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
