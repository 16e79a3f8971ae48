"""Averages of weights: equal to plain loops over saved weights, used where weights are read, resumed bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, SPIRALS
from runs import only_run
from safetensors.torch import load_file
from torch import Tensor, nn
from watching import run_forked

from trainer.callbacks.averaging import STATE_KEY, WeightAverage
from trainer.checkpoint.weights import read_state
from trainer.cli import main
from trainer.run.metrics_file import read_metrics
from trainer.task import find_tasks

WIDTH = 8
# A network with BatchNorm; 4 full batches of 32 an epoch, and an evaluation in the middle and at the end of each.
WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'normalised'}]",
    "task=spirals",
    "task.name=normalised",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=3",
    "trainer.val_check_interval=2",
    "checkpoint.keep=100",
    "data.num_points=128",
    f"model.width={WIDTH}",
    "optimizer.lr=0.05",
]
DECAY = 0.7
AVERAGES = {
    # Synchronised, so that two ranks train what one does.
    "ema": [
        "callbacks=ema",
        f"callbacks.ema.decay={DECAY}",
        "callbacks.ema.start_step=1",
        "trainer.sync_batchnorm=true",
    ],
    # Not, so that the ranks' statistics differ.
    "swa": ["callbacks=swa", "callbacks.swa.every_n_steps=2", "callbacks.swa.start_fraction=0.25"],
}
SHORT = [
    "task=cnn",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=4",
]
EVERY_STEP = "checkpoint.every_n_steps=1"
NUM_STEPS, KILLED_AT = 12, 8


def words_of(average: str) -> list[str]:
    return [*WORDS, *AVERAGES[average]]


SLOW = pytest.mark.slow
RUNS = [("ema", 1), pytest.param(("ema", 2), marks=SLOW), pytest.param(("swa", 1), marks=SLOW), ("swa", 2)]


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int, Path]:
    """An uninterrupted run that has saved every step: average, number of ranks, run directory."""
    average, ranks = request.param
    directory = tmp_path_factory.mktemp(f"{average}{ranks}")
    assert run_forked([*words_of(average), EVERY_STEP], directory, ranks) == [0] * ranks
    return average, ranks, only_run(directory / "outputs")


def saved(run: Path, step: int) -> dict[str, Any]:
    return read_state(run / "checkpoints" / f"step-{step:08d}" / "state.ckpt")


def by_hand(average: str, trained: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The average after the last step, in double precision. Args: trained: weights by step."""
    if average == "swa":
        used = [step for step in trained if step > 3 and (step - 3) % 2 == 0]
        return {
            name: sum((trained[s][name].double() for s in used), torch.tensor(0.0)) / len(used) for name in trained[1]
        }
    result = {name: tensor.double() for name, tensor in trained[2].items()}
    for step in range(3, NUM_STEPS + 1):
        result = {name: DECAY * value + (1 - DECAY) * trained[step][name].double() for name, value in result.items()}
    return result


def test_it_equals_a_plain_loop_over_saved_weights(whole: tuple[str, int, Path]) -> None:
    average, _, run = whole
    states = {step: saved(run, step) for step in range(1, NUM_STEPS + 1)}
    names = list(states[NUM_STEPS][STATE_KEY]["trained"])
    assert ("model.1.running_var" in names) == (average == "swa")
    assert not states[1][STATE_KEY]["trained"]
    trained = {
        step: {name: (state[STATE_KEY]["trained"] or state["state_dict"])[name] for name in names}
        for step, state in states.items()
    }
    for name, expected in by_hand(average, trained).items():
        actual = states[NUM_STEPS]["state_dict"][name]
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    head = "model.3.weight"
    assert not torch.allclose(states[NUM_STEPS]["state_dict"][head], trained[NUM_STEPS][head], rtol=1e-2)


def validation_loss(weights: Mapping[str, Tensor]) -> float:
    """Of the spirals' validation points, by a network built here."""
    find_tasks((str(SPIRALS),))
    from spirals.data import Points

    network = nn.Sequential(nn.Linear(2, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)).eval()
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    points = Points(101, 0.02, seed=2)
    with torch.no_grad():
        return float(F.cross_entropy(network(points.points).double(), points.labels))


def test_it_is_what_is_evaluated_and_exported(whole: tuple[str, int, Path]) -> None:
    _, _, run = whole
    losses = {line["step"]: line["val/loss"] for line in read_metrics(run) if "val/loss" in line}
    state = saved(run, NUM_STEPS)
    expected = validation_loss(state["state_dict"])
    assert losses[NUM_STEPS] == pytest.approx(expected, rel=1e-5)
    own = validation_loss({**state["state_dict"], **state[STATE_KEY]["trained"]})
    assert abs(own - expected) > 1e-3
    exported = load_file(run / "model.safetensors")
    for name, tensor in read_state(run / "checkpoints" / "best" / "state.ckpt")["state_dict"].items():
        assert torch.equal(exported[name], tensor), name


def killing(step: int) -> Callable[[int], None]:
    def prepare(rank: int) -> None:
        update = WeightAverage.on_train_batch_end

        def update_and_die(self: WeightAverage, trainer: Any, *arguments: Any) -> None:
            update(self, trainer, *arguments)
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        WeightAverage.on_train_batch_end = update_and_die  # pyright: ignore[reportAttributeAccessIssue]

    return prepare


def test_a_killed_run_resumes_bit_for_bit(whole: tuple[str, int, Path], tmp_path: Path) -> None:
    average, ranks, run = whole
    words = [*words_of(average), "checkpoint.every_n_steps=3"]
    codes = run_forked(words, tmp_path, ranks, killing(KILLED_AT))
    assert -signal.SIGKILL in codes and 0 not in codes
    killed = only_run(tmp_path / "outputs")
    assert not (killed / "checkpoints" / f"step-{KILLED_AT:08d}").exists()
    assert run_forked(words, tmp_path, ranks) == [0] * ranks
    assert_equal(saved(killed, NUM_STEPS), saved(run, NUM_STEPS))
    expected, resumed = (load_file(each / "model.safetensors") for each in (run, killed))
    assert_equal(resumed, expected)
    assert curves(killed) == curves(run)


def assert_equal(state: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for name in ("state_dict", STATE_KEY) if "state_dict" in state else state:
        mine, theirs = state[name], other[name]
        if isinstance(mine, Mapping):
            assert_equal(mine, theirs)
        elif isinstance(mine, Tensor):
            assert torch.equal(mine, theirs), name
        else:
            assert mine == theirs, name


def curves(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in read_metrics(run)]


@SLOW
def test_two_ranks_have_the_average_of_one(tmp_path: Path) -> None:
    weights = []
    for ranks in (1, 2):
        (directory := tmp_path / str(ranks)).mkdir()
        assert run_forked(words_of("ema"), directory, ranks) == [0] * ranks
        weights.append(saved(only_run(directory / "outputs"), NUM_STEPS)["state_dict"])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


def test_every_network_of_a_task_is_averaged(in_directory: Path) -> None:
    words = ["task=dcgan", *SHORT[1:-1], "model.width=4", "task.ema_decay=null", "callbacks=ema",
             "trainer.max_steps=2", "task.num_scored=64",
             "trainer.limit_val_batches=0", "batch.global_size=8"]  # fmt: skip
    assert main(words) == 0
    state = saved(only_run(in_directory / "outputs"), 2)
    averaged = {name.partition(".")[0] for name in state[STATE_KEY]["trained"]}
    assert averaged == {"generator", "discriminator"}


def test_parameters_are_frozen_and_unfrozen_by_step(in_directory: Path) -> None:
    frozen = ["callbacks=freeze", "callbacks.freeze.parameters=['model.conv?.*']", "callbacks.freeze.from_step=1",
              "callbacks.freeze.until_step=3", EVERY_STEP, "checkpoint.keep=10", "optimizer=adamw"]  # fmt: skip
    assert main([*SHORT, *frozen, "trainer.limit_val_batches=0"]) == 0
    run = only_run(in_directory / "outputs")
    weights = [saved(run, step)["state_dict"] for step in range(1, 5)]
    for name, first in weights[0].items():
        changed = [not torch.equal(a[name], b[name]) for a, b in pairwise(weights)]
        if first.is_floating_point() and name.startswith("model."):
            assert changed == ([False, False, True] if ".conv" in name else [True, True, True]), name


MISTAKES = {
    "both averages": (["callbacks=[ema,swa]"], ["callbacks=[ema,swa]: a run evaluates one average"]),
    "replaced": (["callbacks=early_stopping"], ["callbacks=early_stopping", "monitor.patience=N"]),
    "logged anyway": (["callbacks=[ema,lr_monitor]"], ["callbacks=lr_monitor", "optim/lr"]),
    "misspelt": (["callbacks=emma"], ["callbacks=emma", "did you mean ema?"]),
    "misspelt in a list": (["callbacks=[swa,emma]"], ["callbacks=emma", "did you mean ema?"]),
    "null": (["callbacks=null"], ["callbacks=null", "ema, freeze, swa"]),
    "decay": (["callbacks=ema", "callbacks.ema.decay=1.0"], ["callbacks.ema.decay=1.0: should be less than 1"]),
    "key": (["callbacks=ema", "callbacks.ema.deca=0.9"], ["callbacks.ema.deca=0.9", "did you mean decay?"]),
    "not chosen": (["callbacks.ema.decay=0.9"], ["callbacks.ema.decay=0.9"]),
    "sharded": (["callbacks=ema", "strategy=fsdp2"], ["callbacks=ema: needs full weights, which fsdp2 shards"]),
    "bf16-true": (["callbacks=swa", "trainer.precision=bf16-true"], ["callbacks=swa", "use bf16-mixed"]),
    "nothing frozen": (["callbacks=freeze"], ["callbacks.freeze.parameters=[]"]),
    "until before from": (
        ["callbacks=freeze", "callbacks.freeze.parameters=[model.*]", "callbacks.freeze.from_step=3",
         "callbacks.freeze.until_step=2"],
        ["callbacks.freeze.until_step=2: must be more than from_step=3"],
    ),
    "no such parameter": (
        ["callbacks=freeze", "callbacks.freeze.parameters=[model.conv9.*]"],
        ["callbacks.freeze.parameters=[model.conv9.*]: model.conv9.* fits no parameter"],
    ),
    "everything frozen": (["callbacks=freeze", "callbacks.freeze.parameters=['*']"], ["nothing would be trained"]),
    "a name without target": (["+callbacks.mine.x=1"], ["callbacks.mine=null: no such name", "_target_"]),
    "the generator's average": (["task=dcgan", "callbacks=ema"], ["task.ema_decay=0.99: callbacks=ema averages"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_three_lines(
    mistake: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, named = MISTAKES[mistake]
    assert main([*SHORT, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.split("\n")) <= 3
    for text in named:
        assert text in error
