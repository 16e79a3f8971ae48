"""Parts of the user's own, as docs/own_parts.md shows them, on one rank and on two."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import REPOSITORY, CommandLine
from runs import only_run
from safetensors.torch import load_model
from sklearn.metrics import f1_score

from trainer import parts
from trainer.checkpoint.weights import read_state
from trainer.cli import main
from trainer.engine.build import build_data_and_module
from trainer.run.metrics_file import read_metrics
from trainer.run.stored_config import read_stored_config
from trainer.world import World

PAGE = (REPOSITORY / "docs" / "own_parts.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`mine/([\w/.]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().split("\n")]
WORDS = ["task=cnn", "logger=none", "run.report=false", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
SHORT = [*WORDS, "trainer.max_steps=2", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1"]
SMALL = ["--config-dir=mine/conf", "model=small", "model.width=4"]

BAD_PARTS = """
from torch import nn

number = 3


class Pair(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, images):
        return images, images


class Fails(Pair):
    def forward(self, images):
        raise ValueError("not\\ntoday")


class Fixed(nn.Module):
    def forward(self, images):
        return images.new_zeros(len(images), 10)


def negative(step):
    return -1.0


class Flat(nn.Module):
    def forward(self, images):
        return images.flatten(1)


class Black(nn.Module):
    def forward(self, images):
        return images * 0


class Bag(nn.Module):
    def __init__(self, vocab_size, num_classes, pad_id):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 8, padding_idx=pad_id)
        self.head = nn.Linear(8, num_classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1)
        return self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))
"""


@pytest.fixture
def folder(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the page's files, as a new process finds them: nothing is trusted or imported yet."""
    for name, text in {**FILES, "bad_parts.py": BAD_PARTS}.items():
        file = in_directory / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(parts, "_trusted", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    return in_directory


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(command: str, folder: Path) -> None:
    words = shlex.split(command.removeprefix("python -m trainer "))
    assert (
        main([*words, "trainer.accelerator=cpu", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]) == 0
    )


def test_a_stored_run_imports_nothing_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *SHORT, "optimizer._target_=torch.optim.Adagrad"]) == 0
    run = only_run(folder / "outputs")
    assert f"next: python -m trainer eval run={run.relative_to(folder)} model._target_=nets.SmallNet" in (
        capsys.readouterr().out
    )
    line = ["eval", f"run={run}", "trainer.accelerator=cpu"]
    monkeypatch.setattr(parts, "_trusted", set())
    assert main(line) == 2
    (refused, advice) = capsys.readouterr().err.strip().split("\n")
    assert refused == "model._target_=nets.SmallNet: a stored run imports no code by itself"
    assert advice.endswith("repeat it: model._target_=nets.SmallNet")
    assert main([*line, "model._target_=bad_parts.Fixed"]) == 2
    assert "can be repeated, not replaced" in capsys.readouterr().err
    assert main([*line, "--config-dir=mine/conf", "model._target_=nets.SmallNet"]) == 0
    (logged,) = [line["val/loss"] for line in read_metrics(run) if "val/loss" in line]
    assert json.loads((run / "eval.json").read_text())["val/loss"] == pytest.approx(logged, abs=1e-6)


def test_identity_has_target_and_arguments(folder: Path) -> None:
    assert main([*SMALL, *SHORT]) == 0
    identity = json.loads((only_run(folder / "outputs") / "run.json").read_text())["identity"]
    assert identity["model.target"] == "nets.SmallNet"
    assert identity["model.arguments"] == {"width": 4}
    assert not any(key.startswith("model.arguments.") for key in identity)


def test_an_own_optimizer_steps_as_torch_does(folder: Path) -> None:
    """With weight decay, the first step of SGD moves a matrix by lr x decay x weight more, and no bias."""
    words = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=0.5", "optimizer.weight_decay=0.2"]
    assert main([*SMALL, *SHORT, *words, "checkpoint.every_n_steps=1", "run.name=a"]) == 0
    assert main([*SMALL, *SHORT, *words, "optimizer.weight_decay=0.0", "checkpoint.every_n_steps=1", "run.name=b"]) == 0
    decayed, plain = (
        read_state(folder / "outputs" / "cnn" / name / "checkpoints" / "step-00000001" / "state.ckpt")["state_dict"]
        for name in "ab"
    )
    bias, weight = "model.head.bias", "model.head.weight"
    assert torch.equal(decayed[bias], plain[bias])
    ratio = (plain[weight] - decayed[weight]) / 0.1
    # Which is the weight that it began with.
    assert ratio.abs().max() <= (1 / (4 * 16)) ** 0.5 + 1e-5  # nn.Linear's initial range
    assert ratio.abs().mean() > 0.01


@pytest.mark.parametrize(
    ("words", "factors"),
    [
        (["_target_=schedules.stairs", "height=0.5"], [1.0, 0.5, 0.25, 0.125]),
        (["_target_=schedules.stairs", "height=0.5", "warmup_fraction=0.5"], [1 / 3, 2 / 3, 1.0, 0.25]),
        (["_target_=torch.optim.lr_scheduler.ExponentialLR", "gamma=0.5"], [1.0, 0.5, 0.25, 0.125]),
        (
            ["_target_=torch.optim.lr_scheduler.ExponentialLR", "gamma=0.5", "warmup_fraction=0.5"],
            [1 / 3, 2 / 3, 1.0, 0.5],
        ),
        (["_target_=torch.optim.lr_scheduler.CosineAnnealingLR"], [1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
    ],
)
def test_an_own_schedule_gives_the_learning_rates(words: list[str], factors: list[float], folder: Path) -> None:
    line = [f"scheduler.{word}" for word in words]
    steps = ["trainer.max_steps=4", "trainer.limit_val_batches=0"]
    assert main(["--config-dir=mine/conf", *SHORT, *steps, *line, "optimizer=sgd", "optimizer.lr=0.1"]) == 0
    rates = [line["optim/lr"] for line in read_metrics(only_run(folder / "outputs")) if "optim/lr" in line]
    assert rates == pytest.approx([0.1 * factor for factor in factors])


def test_bert_trains_and_applies_an_own_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--config-dir=mine/conf", "model._target_=bad_parts.Bag"]
    short = ["task=bert", *SHORT[1:], "data.num_train=64", "data.num_validation=64", "data.num_test=64"]
    assert main([*own, *short, "model.vocab_size=300"]) == 0
    run = only_run(folder / "outputs")
    (folder / "texts.jsonl").write_text('{"text": "where is my card"}\n')
    line = [*own, f"run={run}", "trainer.accelerator=cpu"]
    assert main(["eval", *line]) == 0
    assert main(["predict", *line, "input=texts.jsonl"]) == 0
    (row,) = (run / "predictions.jsonl").read_text().strip().split("\n")
    assert "where is my card" in row
    capsys.readouterr()
    assert main([*own, *short]) == 2
    assert capsys.readouterr().err == "model.vocab_size=null: is missing\n"
    assert main([*own, *short, "model.vocab_size=300", "task.layer_lr_decay=0.9"]) == 2
    assert "task.layer_lr_decay=0.9: the layers of model=Bag" in capsys.readouterr().err


def test_an_own_transform_sees_training_images_only(folder: Path) -> None:
    """Darkened to black, training images hold nothing to learn from; evaluation takes them as they are."""
    words = ["--config-dir=mine/conf", *SHORT, "data.transform._target_=bad_parts.Black", "run.name=black"]
    assert main([*words, "trainer.max_steps=1"]) == 0
    assert main([*SHORT, "trainer.max_steps=1", "run.name=plain"]) == 0
    black, plain = (
        {k: v for line in read_metrics(folder / "outputs" / "cnn" / name) for k, v in line.items()}
        for name in ("black", "plain")
    )
    assert black["train/loss"] != plain["train/loss"]
    assert abs(black["train/loss"] - math.log(10)) < 0.05
    labels, logits = labels_and_logits(folder / "outputs" / "cnn" / "black")
    assert black["val/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_an_own_metric_equals_scikit_learn(folder: Path) -> None:
    own = ["metrics.f1._target_=torchmetrics.classification.MulticlassF1Score", "metrics.f1.average=macro"]
    words = [*WORDS, "trainer.max_steps=30", *own, "monitor.metric=val/f1", "run.name=f1"]
    assert main(words) == 0
    run = folder / "outputs" / "cnn" / "f1"
    measured = {key: value for line in read_metrics(run) for key, value in line.items()}["val/f1"]
    labels, logits = labels_and_logits(run)
    expected = f1_score(labels, logits.argmax(1), average="macro")
    assert 0.1 < measured < 1.0
    assert measured == pytest.approx(expected, abs=1e-6)


def labels_and_logits(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the validation images, normalised here, by the exported weights."""
    stored = read_stored_config(run)
    data, module = build_data_and_module(stored.config, stored.task, World("single", "cpu", 1, 1, 1), run)
    load_model(module, str(run / "model.safetensors"))
    model: Any = module.eval()
    images = data.sets["val"]
    batch: Any = images.gather(np.arange(len(images)), len(images), 0)
    spec = json.loads((run / "inputs.json").read_text())
    with torch.no_grad():
        logits = model.model((batch.images.float() / 255 - spec["mean"][0]) / spec["std"][0])
    return batch.labels, logits


ALL = [
    "--config-dir=mine/conf", *WORDS[:1], *WORDS[2:], "trainer.max_steps=4", "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=2", "batch.eval_size=16", "run.name=run", "model=small", "model.width=4",
    "optimizer._target_=torch.optim.NAdam", "scheduler._target_=schedules.stairs", "scheduler.height=0.5",
    "data.transform._target_=transforms.Darken", "data.transform.strength=0.5",
    "metrics.f1._target_=torchmetrics.classification.MulticlassF1Score", "metrics.f1.average=macro",
    "callbacks=[count,ema]", "logger=csv", "logger.mine._target_=lines.Lines", "logger.mine.file=lines.txt",
]  # fmt: skip


@pytest.mark.slow
def test_all_parts_together_give_the_curve_of_one_rank_on_two(folder: Path, command_line: CommandLine) -> None:
    """Ranks that the command starts are told by it what they may import, and read the rest from the run directory."""
    curves = []
    for ranks in (1, 2):
        root = folder / str(ranks)
        done = command_line(*ALL, f"trainer.devices={ranks}", f"run.root={root}")
        assert done.returncode == 0, done.stderr
        run = root / "cnn" / "run"
        assert (folder / "steps.txt").read_text() == "4 steps"
        assert len((run / "lines.txt").read_text().split("\n")) > 4
        assert "val/f1" in (run / "csv" / "version_0" / "metrics.csv").read_text()
        (folder / "steps.txt").unlink()
        curves.append([{k: v for k, v in line.items() if not k.startswith("perf/")} for line in read_metrics(run)])
    assert len(curves[0]) == len(curves[1]) > 4
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, abs=2e-4)


def test_loggers_work_together_and_the_old_keys_are_read(folder: Path) -> None:
    words = [word for word in SHORT if not word.startswith("logger=")]
    assert main([*words, "logger=[csv,tensorboard,wandb]", "logger.mode=offline", "logger.project=p"]) == 0
    run = only_run(folder / "outputs")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["logger"]["wandb"]["project"] == "p"
    rows = list(csv.DictReader((run / "csv" / "version_0" / "metrics.csv").open()))
    logged = {float(row["train/loss"]) for row in rows if row["train/loss"]}
    assert logged == {line["train/loss"] for line in read_metrics(run) if "train/loss" in line}
    assert list(run.glob("tensorboard/events*"))
    assert list(run.glob("wandb/offline-*/*.wandb"))
    config["logger"] = {"name": "wandb", **config["logger"]["wandb"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert set(read_stored_config(run).config.logger) == {"wandb"}


TORCH = "torch.optim"
F1 = "torchmetrics.classification.MulticlassF1Score"
MISTAKES = {
    "a transform's shape": (["data.transform._target_=bad_parts.Flat"], ["returns (32, 1024) torch.float32;"]),
    "a transform that is none": (["data.transform=3"], ["data.transform=3"]),
    "a transform's argument": (["data.transform._target_=transforms.Darken"], ["'strength'"]),
    "no metric": (["metrics.m._target_=bad_parts.Flat"], ["gives a Flat, not a torchmetrics.metric.Metric"]),
    "many values": ([f"metrics.f1._target_={F1}", "metrics.f1.average=none"], ["values of shape (10,); one number"]),
    "a metric of other outputs": (["metrics.m._target_=torchmetrics.classification.BinaryF1Score"], ["fails on"]),
    "a name that is taken": ([f"metrics.accuracy._target_={F1}"], ["metrics.accuracy: the task measures accuracy"]),
    "metrics without nodes": (["metrics=f1"], ["metrics=f1: holds nodes by name"]),
    "no callback": (["callbacks.x._target_=bad_parts.Flat"], ["gives a Flat, not a pytorch_lightning"]),
    "a callback that is replaced": (
        ["callbacks.x._target_=pytorch_lightning.callbacks.ModelCheckpoint"], ["use checkpoint.*"],
    ),
    "no logger": (["logger.x._target_=bad_parts.Flat"], ["logger.x._target_=bad_parts.Flat: gives a Flat"]),
    "no such logger": (["logger=[csv,wanb]"], ["logger=wanb: no such logger", "did you mean wandb?"]),
    "W&B's key without W&B": (["logger.project=x"], ["logger.wandb.project=x"]),
    "a logger that is not installed": (["logger=mlflow"], ["logger=mlflow", "pip install"]),

    "no such module": (["model._target_=nowhere.Net"], ["model._target_=nowhere.Net", "No module named 'nowhere'"]),
    "no such class": (["model._target_=nets.Smal"], ["model._target_=nets.Smal", "cannot be imported"]),
    "neither class nor function": (["model._target_=bad_parts.number"], ["is of type int, neither"]),
    "a class of another kind": (["model._target_=schedules.stairs", "model.height=1", "model.step=1"], ["stairs"]),
    "wrong argument": ([*SMALL[1:], "+model.widht=3"], ["unexpected keyword argument 'widht'"]),
    "wrong output": (["model._target_=bad_parts.Pair"], ["returns a tuple; a tensor of (1, 10) is needed"]),
    "wrong shape": ([*SMALL[1:], "+model.num_classes=3"], ["returns (1, 3); a tensor of (1, 10)"]),
    "fails": (["model._target_=bad_parts.Fails"], ["its forward fails on (1, 1, 32, 32): ValueError: not today"]),
    "nothing to train": (["model._target_=bad_parts.Fixed"], ["no parameters to train"]),
    "no target": (["model=own"], ["model._target_=null: is missing"]),
    "no own data": (["data._target_=nets.SmallNet"], ["task=cnn takes no data of your own"]),
    "another key": (["model.width=3"], ["model.width=3: the chosen model has no such key"]),
    "no lr": (["optimizer._target_=torch.nn.Linear"], ["has no parameter lr"]),
    "no weight decay": (
        [f"optimizer._target_={TORCH}.Rprop", "optimizer.weight_decay=0.1"],
        ["optimizer.weight_decay=0.1", "Rprop has no such parameter"],
    ),
    "optimizer's argument": ([f"optimizer._target_={TORCH}.RMSprop", "optimizer.alpah=1"], ["'alpah'"]),
    "no optimizer": (["optimizer._target_=torch.nn.LPPool1d", "optimizer.lr=1"], ["no parameter lr"]),
    "lr is no number": ([f"optimizer._target_={TORCH}.RMSprop", "optimizer.lr=x"], ["optimizer.lr=x"]),
    "negative factor": (["scheduler._target_=bad_parts.negative"], ["gives -1.0 at step 0"]),
    "a schedule that fails": (["scheduler._target_=nets.Tensor"], ["scheduler._target_=nets.Tensor"]),
    "follows a metric": (
        [f"scheduler._target_={TORCH}.lr_scheduler.ReduceLROnPlateau"],
        ["follows a metric"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_three_lines(mistake: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, named = MISTAKES[mistake]
    assert main(["--config-dir=mine/conf", *SHORT, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.split("\n")) <= 3
    for text in named:
        assert text in error


def test_other_tasks_take_no_metric(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=dcgan", *SHORT[1:], f"metrics.f1._target_={F1}"]) == 2
    assert "metrics=f1: task=dcgan takes no metrics" in capsys.readouterr().err


def test_other_tasks_take_no_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=dcgan", *SHORT[1:], "--config-dir=mine/conf", "model._target_=nets.SmallNet"]) == 2
    assert "task=dcgan takes no model of your own" in capsys.readouterr().err
