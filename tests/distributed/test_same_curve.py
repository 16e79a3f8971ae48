"""The loss curve is that of a plain PyTorch loop, on one rank, on two, and with accumulation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from two_ranks import in_one_process, on_two_ranks, only_run

from trainer.data.images.module import ImageDataModule
from trainer.run.metrics_file import read_metrics
from trainer.verbs.prepare import Options, prepare

NUM_STEPS = 100
SEED = 3
WORDS = [
    "task=cnn",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=null",
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.log_every_n_steps=1",
    "batch.global_size=48",
    f"seed={SEED}",
    "run.name=run",
    # SGD shows a wrong scale of the gradient, which Adam would hide. A larger learning rate enters the steep part of
    # the curve, where one ReLU that rounding switches grows into a visible difference within a few steps.
    "optimizer=sgd",
    "optimizer.lr=0.003",
    "optimizer.weight_decay=0.0",
]


@pytest.fixture(scope="module")
def plain_curve() -> list[float]:
    """Twenty lines of PyTorch: permutation, batch, normalise, forward, backward, step."""
    config, task = (plan := prepare(WORDS, Options())).config, plan.task
    data = task.build_data(config)
    assert isinstance(data, ImageDataModule)
    data.load(torch.device("cpu"))
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    model = task.build_module(config, data).networks()["model"]
    train = data.sets["train"]
    everything = train.gather(np.arange(len(train)), len(train), 0)
    pixels, labels = everything.images.double() / 255, everything.labels  # pyright: ignore[reportAttributeAccessIssue]
    inputs = ((pixels - pixels.mean()) / pixels.std(correction=0)).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9, nesterov=True)
    losses: list[float] = []
    epoch = 0
    while len(losses) < NUM_STEPS:
        order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(len(train)))
        for batch in order.split(48):
            loss = cross_entropy(model(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        epoch += 1
    return losses[:NUM_STEPS]


# By the name of a run: ranks, and words.
RUNS = {
    "one": (1, []),
    "one-accumulating": (1, ["batch.micro_size=12"]),
    "two": (2, []),
    "two-accumulating": (2, ["batch.micro_size=12"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs; the ranks are started once."""
    folder = tmp_path_factory.mktemp("curves")
    lines = {folder / name: [*WORDS, *words] for name, (ranks, words) in RUNS.items() if ranks == 2}
    for directory in lines:
        directory.mkdir()
    on_two_ranks(folder, lines)
    for name in RUNS.keys() - {directory.name for directory in lines}:
        in_one_process(folder / name, [*WORDS, *RUNS[name][1]])
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_that_of_a_plain_loop(name: str, plain_curve: list[float], folder: Path) -> None:
    run, tolerance = only_run(folder / name), 1e-6 if name == "one" else 1e-5
    curve = [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]
    assert len(curve) == NUM_STEPS
    assert np.abs(np.array(curve) - np.array(plain_curve)).max() <= tolerance
    assert plain_curve[-1] < plain_curve[0] - 0.04, "a curve that does not fall would compare nothing"
