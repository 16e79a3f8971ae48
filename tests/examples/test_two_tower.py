"""The two-tower task: its loss and gradient against plain autograd, and the same on ranks and micro-batches."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file
from torch import Tensor
from watching import run_forked

from examples.recommendation.files import read_folder, write_folder
from examples.recommendation.generated import generated
from examples.recommendation.split import Cuts, cuts_of
from trainer.task import find_tasks

PLUGIN = REPOSITORY / "examples" / "recommendation" / "two_tower"
SIZE, TEMPERATURE, HISTORY, LENGTH = 30, 0.1, 4, 12
LR = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The forked runs find imported what takes seconds to import.
    find_tasks((str(PLUGIN),))
    for name in ("two_tower.module", "two_tower.inference", "trainer.engine.train"):
        importlib.import_module(name)
    folder = tmp_path_factory.mktemp("two_tower")
    write_folder(generated(num_items=40, num_users=12, seed=3), folder / "data")
    return folder


@pytest.fixture(scope="module")
def cuts(folder: Path) -> Cuts:
    return cuts_of(read_folder(folder / "data").interactions)


def train(folder: Path, cuts: Cuts, name: str, *words: str, ranks: int = 1, plant: Callable[[int], None] | None = None):
    """Train in processes of their own. Returns: the directory of the run."""
    options = {
        "plugins": f"[{PLUGIN}]", "task": "two_tower", "task.temperature": TEMPERATURE, "data.folder": folder / "data",
        "data.train_before": cuts.train_before, "data.validate_before": cuts.validate_before,
        "data.max_history": HISTORY, "data.max_length": LENGTH, "model.hidden_size": 16,
        "optimizer": "sgd", "optimizer.lr": LR, "optimizer.momentum": 0.0, "optimizer.nesterov": "false",
        "optimizer.weight_decay": 0.0,
        "scheduler": "constant", "scheduler.warmup_fraction": 0.0, "trainer.gradient_clip_val": "null",
        "batch.global_size": SIZE, "trainer.max_epochs": 1, "trainer.log_every_n_steps": 1, "run.name": name,
        "logger": "none", "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false",
    }  # fmt: skip
    line = [f"{key}={value}" for key, value in options.items()]
    codes = run_forked([*line, *words], folder, ranks, plant or (lambda rank: None))
    assert codes == [0] * ranks
    return folder / "outputs" / "two_tower" / name


def losses_of(run: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["train/loss"] for line in lines if "train/loss" in line])


def last(run: Path, metric: str) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[metric] for line in lines if metric in line][-1]


@pytest.fixture(scope="module")
def on_one_rank(folder: Path, cuts: Cuts) -> Path:
    return train(folder, cuts, "one")


@pytest.mark.parametrize(
    ("name", "ranks", "words"),
    [
        ("both", 2, ["batch.micro_size=5"]),
        pytest.param("two", 2, [], marks=pytest.mark.slow),
        pytest.param("micro", 1, ["batch.micro_size=6"], marks=pytest.mark.slow),
    ],
)
def test_ranks_and_micro_batches_give_the_same_losses(
    folder: Path, cuts: Cuts, on_one_rank: Path, name: str, ranks: int, words: list[str]
) -> None:
    run = train(folder, cuts, name, *words, ranks=ranks)
    expected = losses_of(on_one_rank)
    assert len(expected) > 3
    assert np.abs(losses_of(run) - expected).max() < 1e-5
    for metric in ("val/loss", "val/mrr", "val/recall_at_10"):
        assert last(run, metric) == pytest.approx(last(on_one_rank, metric), abs=1e-5)


def only_own_rows(rank: int) -> None:
    """The fault that the test above has to see: each rank takes negatives from its own rows only."""
    module = importlib.import_module("two_tower.module")
    module.gather_rows = lambda rows: rows
    module.own_rows = lambda values, num_rows: values


@pytest.mark.slow
def test_negatives_of_one_rank_alone_are_noticed(folder: Path, cuts: Cuts, on_one_rank: Path) -> None:
    run = train(folder, cuts, "planted", ranks=2, plant=only_own_rows)
    assert np.abs(losses_of(run) - losses_of(on_one_rank)).max() > 1e-2


@pytest.mark.slow
def test_the_first_step_is_that_of_plain_autograd(folder: Path, cuts: Cuts) -> None:
    """Loss by loops over pairs, with the whole batch in one graph, and one step of gradient descent by hand."""
    one_step = ["trainer.max_steps=1"]
    before = load_file(train(folder, cuts, "still", *one_step, "optimizer.lr=1e-30") / "model.safetensors")
    run = train(folder, cuts, "stepped", *one_step, "batch.micro_size=10")
    after = load_file(run / "model.safetensors")
    data, network = (importlib.import_module(f"two_tower.{name}") for name in ("data", "network"))
    tokenizer, config = data.read_spec(run)
    encoder = network.AutoModel.from_config(network.BertConfig.from_dict(config))
    tower = network.without_pooler(encoder)
    tower.load_state_dict({name.removeprefix("model.items."): value for name, value in before.items()})

    catalogue = read_folder(folder / "data")
    targets, histories, shares = pairs_by_hand(catalogue.interactions, cuts)
    chosen = np.random.default_rng([0, 0]).permutation(len(targets))[:SIZE]
    tokens = tokenizer(list(catalogue.texts), truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    vectors = tower(tokens["input_ids"], tokens["attention_mask"])
    loss = loss_by_hand(vectors, [targets[n] for n in chosen], [histories[n] for n in chosen], shares)
    loss.backward()

    assert losses_of(run)[0] == pytest.approx(loss.item(), abs=1e-5)
    moved = 0.0
    for name, parameter in tower.named_parameters():
        step = after[f"model.items.{name}"] - before[f"model.items.{name}"]
        moved = max(moved, float(step.abs().max()))
        torch.testing.assert_close(step, -LR * parameter.grad, atol=1e-5, rtol=1e-3)
    assert moved > 1e-2


def pairs_by_hand(interactions, cuts: Cuts) -> tuple[list[int], list[list[int]], dict[int, float]]:
    targets, histories = [], []
    seen: dict[int, list[int]] = {}
    for user, item, time in zip(interactions.users, interactions.items, interactions.times, strict=True):
        earlier = seen.setdefault(int(user), [])
        if earlier and time < cuts.train_before:
            targets.append(int(item))
            histories.append(earlier[-HISTORY:])
        seen[int(user)] = [*earlier, int(item)]
    shares = {item: targets.count(item) / len(targets) for item in set(targets)}
    return targets, histories, shares


def loss_by_hand(vectors: Tensor, targets: list[int], histories: list[list[int]], shares: dict[int, float]) -> Tensor:
    losses = []
    for row, (target, history) in enumerate(zip(targets, histories, strict=True)):
        user = torch.stack([vectors[item] for item in history]).sum(0)
        user = user / user.norm()
        logits = {}
        for column, other in enumerate(targets):
            if column == row or (other != target and other not in history):
                logits[column] = user @ vectors[other] / TEMPERATURE - np.log(shares[other])
        losses.append(torch.stack(list(logits.values())).exp().sum().log() - logits[row])
    return torch.stack(losses).mean()
