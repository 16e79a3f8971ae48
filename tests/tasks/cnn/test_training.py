"""The CNN task through the engine, against a plain PyTorch loop written out here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CommandLine
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from trainer.cli import main
from trainer.run.metrics_file import read_metrics

NUM_STEPS, BATCH_SIZE, SEED = 100, 32, 3
WORDS = [
    "task=cnn",
    "logger=none",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=null",
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    f"batch.global_size={BATCH_SIZE}",
    f"seed={SEED}",
    "run.name=run",
]


def training_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The four fifths of each digit that are trained on, enlarged to 32x32 and normalised."""
    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in levels]
    shuffled = np.random.default_rng(0).permutation(len(levels))
    by_class = shuffled[np.argsort(digits.target[shuffled], kind="stable")]
    held_out = np.arange(359) * 1797 // 359 + 1797 // (2 * 359)
    rows = np.sort(np.delete(by_class, held_out))
    pixels = np.stack(large)[rows]
    mean, std = torch.tensor(pixels.mean() / 255).float(), torch.tensor(pixels.std() / 255).float()
    return (torch.from_numpy(pixels)[:, None] / 255 - mean) / std, torch.from_numpy(digits.target[rows])


def lenet5() -> nn.Module:
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


@pytest.fixture(scope="module")
def plain_losses() -> list[float]:
    """An ordinary training loop with nothing of ours: permute, slice, forward, mean cross-entropy, backward, Adam."""
    images, labels = training_digits()
    model = lenet5()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses: list[float] = []
    epoch = 0
    while len(losses) < NUM_STEPS:
        order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(len(images)))
        for batch in order.split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        epoch += 1
    return losses[:NUM_STEPS]


def losses_of(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(run_dir) if "train/loss" in line]


def test_losses_are_those_of_a_plain_loop(plain_losses: list[float], in_directory: Path) -> None:
    assert main(WORDS) == 0
    np.testing.assert_allclose(losses_of(in_directory / "outputs/cnn/run"), plain_losses, atol=1e-6, rtol=0)


def test_evaluation_of_three_ranks_is_that_of_one(in_directory: Path, command_line: CommandLine) -> None:
    assert main([*WORDS, "trainer.max_steps=30"]) == 0
    results = []
    for devices in (1, 3):
        done = command_line("eval", "run=outputs/cnn/run", f"trainer.devices={devices}")
        assert done.returncode == 0, done.stderr
        results.append(json.loads((in_directory / "outputs/cnn/run/eval.json").read_text()))
    one, three = results
    assert one.pop("val/loss") == pytest.approx(three.pop("val/loss"), abs=1e-6)
    assert one == three
    assert set(one) == {"val/accuracy", "val/top5_accuracy"}


def test_the_default_run_learns_and_leaves_its_report(in_directory: Path) -> None:
    assert main(["task=cnn", "logger=none", "trainer.accelerator=cpu", "run.name=run"]) == 0
    run_dir = in_directory / "outputs/cnn/run"
    accuracies = [line["val/accuracy"] for line in read_metrics(run_dir) if "val/accuracy" in line]
    assert len(accuracies) == 10
    assert max(accuracies) >= 0.95
    with (run_dir / "per_class_val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["num_images"]) for row in rows) == 359
    assert sum(int(row["num_right"]) for row in rows) == round(accuracies[-1] * 359)
    assert (run_dir / "confusion_val.png").stat().st_size > 0
    record = json.loads((run_dir / "run.json").read_text())
    assert "held out of train" in record["data"]["val"]
    assert record["model"]["num_parameters"] == {"model": 61_706}


@pytest.mark.parametrize(
    "words",
    [
        ["task.mixup_alpha=0.4", "task.label_smoothing=0.1"],
        ["data.crop_padding=4", "data.flip=true", "performance.channels_last=true"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=bf16-true"],
        ["model=resnet18", "data.image_size=8", "performance.channels_last=true"],
        ["model=resnet50", "data.image_size=8"],
        ["model=reference_cnn", "data.image_size=null"],
    ],
)
def test_options_train(words: list[str], in_directory: Path) -> None:
    shorter = ["trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=1"]
    assert main(["task=cnn", "logger=none", "trainer.accelerator=cpu", "run.name=run", *shorter, *words]) == 0
    assert np.isfinite(
        [line["val/loss"] for line in read_metrics(in_directory / "outputs/cnn/run") if "val/loss" in line]
    )
