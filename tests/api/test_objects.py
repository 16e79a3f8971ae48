"""Parts passed to trainer.fit as objects: they train what the same parts by `_target_` do."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback
from pytorch_lightning.loggers.logger import DummyLogger
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score
from watching import run_forked

import trainer
from trainer.api import process
from trainer.cli import main
from trainer.run.metrics_file import read_metrics

WORDS = [
    "task=cnn", "logger=none", "run.report=false", "trainer.accelerator=cpu", "trainer.max_steps=3",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1", "trainer.limit_val_batches=1", "batch.eval_size=32",
]  # fmt: skip


class Net(nn.Module):
    def __init__(self, in_channels: int, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.features = nn.Conv2d(in_channels, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


class Single(Net):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("as FSDP's")


def stairs(step: int, total_steps: int, height: float) -> float:
    return height ** (2 * step // total_steps)


class Darken(nn.Module):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength, self.calls = strength, 0

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        self.calls += 1
        return images * (1 - self.strength * draws[:, 0, None, None, None])


class Count(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.steps = state_dict["steps"]


class Steps(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(int(step or 0))


def objects() -> dict[str, Any]:
    return {
        "model": functools.partial(Net, width=5),
        "optimizer": functools.partial(torch.optim.NAdam, lr=0.01),
        "scheduler": functools.partial(stairs, height=0.5),
        "transform": Darken(0.5),
        "callbacks": [Count()],
        "loggers": [Steps()],
        "metrics": {"f1": MulticlassF1Score(10)},
    }


TARGETS = [
    f"model._target_={__name__}.Net", "model.width=5", "optimizer._target_=torch.optim.NAdam", "optimizer.lr=0.01",
    f"scheduler._target_={__name__}.stairs", "scheduler.height=0.5", f"data.transform._target_={__name__}.Darken",
    "data.transform.strength=0.5", "metrics.f1._target_=torchmetrics.classification.MulticlassF1Score",
]  # fmt: skip


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def test_objects_train_as_targets_do(in_directory: Path) -> None:
    """Bit for bit; and each part has had its effect."""
    passed = objects()
    result = trainer.fit(*WORDS, "run.name=objects", **passed)
    assert main([*WORDS, *TARGETS, "run.name=targets"]) == 0
    mine, theirs = weights(result.run_dir), weights(result.run_dir.with_name("targets"))
    assert mine["model.features.weight"].shape == (5, 1, 3, 3)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    assert passed["transform"].calls == 3
    assert passed["callbacks"][0].steps == 3
    assert passed["loggers"][0].steps[-1] == 3
    logged = [read_metrics(result.run_dir.with_name(name)) for name in ("objects", "targets")]
    assert [line["optim/lr"] for line in logged[0] if "optim/lr" in line] == [0.01, 0.01, 0.005]
    (f1,), (same,) = ([line["val/f1"] for line in lines if "val/f1" in line] for lines in logged)
    assert f1 == same == result.metrics["val/f1"]
    identity = json.loads((result.run_dir / "run.json").read_text())["identity"]
    assert identity["model.target"] == f"object:{__name__}.Net"
    assert identity["callbacks.Count.target"] == f"object:{__name__}.Count"
    assert (identity["optimizer.lr"], identity["scheduler.arguments"]) == (0.01, {"height": 0.5})


def test_a_network_is_trained_in_place_and_passed_again(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = Net(1, 10)
    before = network.head.weight.detach().clone()
    metrics = {"f1": MulticlassF1Score(10)}
    sizes: list[int] = []

    def note(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images

    run = trainer.fit(*WORDS, model=network, metrics=metrics, transform=note).run_dir
    assert f"next: trainer.evaluate('{run}', model=...) from Python" in capsys.readouterr().out
    assert not torch.equal(network.head.weight, before)
    assert all(torch.equal(tensor, weights(run)[f"model.{name}"]) for name, tensor in network.state_dict().items())
    assert sizes == [32, 32, 32]

    other = Net(1, 10)
    images = (np.arange(3 * 32 * 32).reshape(3, 32, 32) % 251).astype("uint8")
    with torch.no_grad():
        model = trainer.load(run, device="cpu", model=other)
        expected = network(model.preprocess(list(images))["images"])
    torch.testing.assert_close(model.outputs(images), expected)
    assert other.head.weight.requires_grad
    assert not torch.equal(other.head.weight, network.head.weight)

    logged = [line["val/f1"] for line in read_metrics(run) if "val/f1" in line]
    again = {"model": Net, "metrics": metrics, "transform": nn.Identity()}
    assert trainer.evaluate(run, "trainer.accelerator=cpu", **again)["val/f1"] == pytest.approx(logged[-1])
    Image.fromarray(images[0]).save("image.png")
    table = trainer.predict(run, "trainer.accelerator=cpu", model=Net, input="image.png")
    assert table is not None
    assert model(images[0])[0]["label"] in table.read_text()

    again = {"metrics": metrics, "transform": nn.Identity()}
    for call, named in (
        (lambda: trainer.load(run, device="cpu"), r"model: .* passed from Python, .*Net\n.* take model=\.\.\."),
        (lambda: trainer.predict(run, "trainer.accelerator=cpu", input="image.png"), "passed from Python"),
        (lambda: trainer.evaluate(run, "trainer.accelerator=cpu", **again), "passed from Python"),
        (lambda: trainer.evaluate(run, model=Net), r"transform: .*\n.* take transform=\.\.\."),
        (lambda: trainer.evaluate(run, model=Net, transform=abs), r"metrics\.f1: .*\n.* take metrics=\{'f1': \.\.\.\}"),
        (
            lambda: trainer.evaluate(run, "trainer.devices=2", model=Net),
            r"devices=2: objects .* name model by _target_",
        ),
        (lambda: trainer.load(run, device="cpu", model=nn.Linear(1, 10)), "does not fit the configuration"),
        (lambda: trainer.load(run, device="cpu", model=3), "is a int, neither"),
        (
            lambda: trainer.load(run, device="cpu", model=Single(1, 10)),
            r"model: cannot be copied \(TypeError: as FSDP's",
        ),
        (lambda: trainer.evaluate(run, metrics={"f2": metrics["f1"]}), r"metrics\.f2: the run has no metrics\.f2"),
    ):
        with pytest.raises(trainer.UserError, match=named) as caught:
            call()
        assert len(caught.value.lines) <= 3
    assert main(["eval", f"run={run}", "trainer.accelerator=cpu"]) == 2
    assert "pass it again from Python" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_objects_resume_a_run(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passed = {"model": Net, "optimizer": functools.partial(torch.optim.NAdam, lr=0.01)}
    words = [*WORDS, "trainer.max_steps=4", "run.name=run"]
    whole = trainer.fit(*words, "run.root=whole", **passed, callbacks=[Count()])
    count = Count()
    count.on_train_batch_end = functools.partial(interrupt_after, count, 2)  # pyright: ignore
    stopped = trainer.fit(*words, **passed, callbacks=[count])
    assert (stopped.status, count.steps) == ("stopped", 2)
    with pytest.raises(trainer.UserError, match="another experiment; it differs in model") as caught:
        trainer.fit(*words)
    assert len(caught.value.lines) <= 3
    named = [f"{key}._target_='object:{__name__}.{name}'" for key, name in (("model", "Net"), ("callbacks.c", "Count"))]
    assert main([*WORDS, *named]) == 2
    assert "pass it again from Python" in capsys.readouterr().err
    with pytest.raises(trainer.UserError, match=r"weights of another network \(size mismatch for model") as caught:
        trainer.fit(*words, **{**passed, "model": Net(1, 10, width=7)}, callbacks=[Count()])
    assert len(caught.value.lines) <= 3
    count = Count()
    resumed = trainer.fit(*words, **passed, callbacks=[count])
    assert (resumed.run_dir, resumed.status, count.steps) == (stopped.run_dir, "finished", 4)
    mine, theirs = weights(resumed.run_dir), weights(whole.run_dir)
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


def interrupt_after(count: Count, steps: int, *arguments: Any) -> None:
    count.steps += 1
    if count.steps == steps:
        os.kill(os.getpid(), signal.SIGINT)


def test_two_ranks_pass_their_own_objects(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under torchrun. The networks differ, and rank 0's is trained."""

    def fit_on_rank(rank: int) -> None:
        torch.manual_seed(rank)
        passed = {**objects(), "model": Net(1, 10)}
        result = trainer.fit(*WORDS, "run.name=two", **passed)
        assert (result.status, passed["callbacks"][0].steps) == ("finished", 3)
        assert bool(passed["loggers"][0].steps) == (rank == 0)
        torch.save(passed["model"].state_dict(), f"rank-{rank}.pt")
        raise SystemExit(0)  # in place of the command line

    torch.manual_seed(0)
    one = trainer.fit(*WORDS, "run.name=one", **{**objects(), "model": Net(1, 10)})
    # The ranks are copies of this process, which has called it already.
    monkeypatch.setattr(process, "_joined", threading.Event())
    assert run_forked([], in_directory, 2, fit_on_rank) == [0, 0]
    two = weights(one.run_dir.with_name("two"))
    for name, tensor in weights(one.run_dir).items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
    for rank in (0, 1):
        for name, tensor in torch.load(f"rank-{rank}.pt").items():
            assert torch.equal(tensor, two[f"model.{name}"])
    lines = [read_metrics(one.run_dir.with_name(name))[-1]["val/f1"] for name in ("one", "two")]
    assert lines[0] == pytest.approx(lines[1], abs=1e-6)


MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "an optimizer": ({"optimizer": torch.optim.SGD(Net(1, 10).parameters(), lr=1.0)}, [], "optimizer: a SGD that is"),
    "a scheduler": (
        {"scheduler": torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(Net(1, 10).parameters(), lr=1.0))},
        [],
        "scheduler: a ConstantLR that is built already",
    ),
    "no network": ({"model": 3}, [], "model._target_=object:builtins.int: is a int, neither a torch.nn"),
    "a text": ({"model": "resnet18"}, [], 'name a part by an override, "model=resnet18"'),
    "two models": ({"model": Net}, ["model=resnet18"], "model=resnet18: the call also passes an object"),
    "a network's shape": ({"model": Net(3, 10)}, [], "its forward fails on"),
    "a network's output": ({"model": Net(1, 9)}, [], r"returns \(1, 9\); a tensor of \(1, 10\) is needed"),
    "a class that fails": ({"model": functools.partial(Net, depth=3)}, [], "unexpected keyword argument 'depth'"),
    "a task without": ({"model": Net}, ["task=dcgan"], "task=dcgan takes no model of your own"),
    "no metric": ({"metrics": {"f1": Net(1, 10)}}, [], "metrics.f1.*: is a Net, neither a torchmetrics"),
    "no metrics": ({"metrics": [MulticlassF1Score(10)]}, [], "metrics by name are needed.*not a list"),
    "a metric's name": ({"metrics": {"my f1": MulticlassF1Score(10)}}, [], "'my f1' is no name"),
    "no callback": ({"callbacks": [3]}, [], "callbacks.int.*: is a int, neither a pytorch_lightning"),
    "no callbacks": ({"callbacks": Count()}, [], "callbacks: a list is needed, not a Count"),
    "no logger": ({"loggers": [Count()]}, [], "logger.Count.*: is a Count, neither a pytorch_lightning"),
    "no transform": ({"transform": 3}, [], "gives a int, which cannot be called"),
    "two states": ({"callbacks": [Count(), Count()]}, [], "callbacks.Count_2: saves its state where callbacks.Count d"),
    "several devices": (
        {"model": Net},
        ["trainer.devices=2"],
        "devices=2: objects stay in this process; name model by _",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, in_directory: Path) -> None:
    passed, words, named = MISTAKES[mistake]
    with pytest.raises(trainer.UserError, match=named) as caught:
        trainer.fit(*WORDS, *words, **passed)
    assert len(caught.value.lines) <= 3
