"""The CNN task through the engine, against a plain PyTorch loop written out here."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CommandLine
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tasks.cnn.module import CNNModule
from trainer.cli import main
from trainer.data.images.batches import ImageBatch
from trainer.module import StepSums
from trainer.run.metrics_file import read_metrics

NUM_STEPS, BATCH_SIZE, SEED = 100, 32, 3
WORDS = [
    "task=cnn",
    "logger=none",
    "run.report=false",
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
    """358 images on 3 ranks of 7: the last step has one image, so two ranks evaluate only a filler row."""
    small = ["trainer.max_steps=3", "data.image_size=16", "data.eval_fraction=0.1992", "batch.eval_size=7"]
    assert main([*WORDS, *small]) == 0
    run_dir = in_directory / "outputs/cnn/run"
    results = []
    for devices in (1, 3):
        words = ["eval", f"run={run_dir}", f"trainer.devices={devices}"]
        if devices == 1:
            assert main(words) == 0
        else:
            done = command_line(*words, timeout_s=400)
            assert done.returncode == 0, done.stderr
        counts = [row["num_images"] for row in per_class(run_dir)]
        assert sum(map(int, counts)) == 358
        results.append((json.loads((run_dir / "eval.json").read_text()), per_class(run_dir)))
    (one, classes), (three, same_classes) = results
    assert one.pop("val/loss") == pytest.approx(three.pop("val/loss"), abs=1e-6)
    assert (one, classes) == (three, same_classes)
    assert set(one) == {"val/accuracy", "val/top5_accuracy"}


def per_class(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "per_class_val.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_default_run_learns_and_leaves_its_report(in_directory: Path) -> None:
    assert main(["task=cnn", "logger=none", "run.report=false", "trainer.accelerator=cpu", "run.name=run"]) == 0
    run_dir = in_directory / "outputs/cnn/run"
    accuracies = [line["val/accuracy"] for line in read_metrics(run_dir) if "val/accuracy" in line]
    assert len(accuracies) == 10
    assert max(accuracies) >= 0.95
    rows = per_class(run_dir)
    assert sum(int(row["num_images"]) for row in rows) == 359
    assert sum(int(row["num_right"]) for row in rows) == round(accuracies[-1] * 359)
    assert (run_dir / "confusion_val.png").stat().st_size > 0
    record = json.loads((run_dir / "run.json").read_text())
    assert "held out of train" in record["data"]["val"]
    assert record["model"]["num_parameters"] == {"model": 61_706}


# ---- options: each changes what it names, and nothing is trained as without it

SHORT = [
    "task=cnn",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "data.image_size=16",
]


@dataclass
class Trained:
    """losses: of each step. weights: as stored. conv: the last convolution's weight while training. images: what the
    network was given in the first step."""

    losses: list[float]
    weights: dict[str, Tensor]
    conv: Tensor
    images: Tensor


def train(*words: str) -> Trained:
    """Two steps in the current directory."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = CNNModule.loss

    def watched(self: CNNModule, network: nn.Module, micro: ImageBatch) -> tuple[Tensor, StepSums]:
        # The last one: with a single input channel every memory order is the same.
        conv = [module for module in self.model.modules() if isinstance(module, nn.Conv2d)][-1]
        hook = network.register_forward_pre_hook(lambda _, inputs: seen.append((conv.weight, inputs[0])))
        try:
            return original(self, network, micro)
        finally:
            hook.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CNNModule, "loss", watched)
        assert main([*SHORT, *words]) == 0
    (run,) = Path("outputs/cnn").iterdir()
    assert all(np.isfinite(line["val/loss"]) for line in read_metrics(run) if "val/loss" in line)
    return Trained(losses_of(run), load_file(run / "model.safetensors"), *seen[0])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        return train()


def test_label_smoothing_changes_the_loss_and_not_the_images(plain: Trained, in_directory: Path) -> None:
    smoothed = train("task.label_smoothing=0.1")
    assert torch.equal(smoothed.images, plain.images)
    assert abs(smoothed.losses[0] - plain.losses[0]) > 1e-4


def test_mixup_blends_the_images(plain: Trained, in_directory: Path) -> None:
    mixed = train("task.mixup_alpha=0.4")
    changed = (mixed.images != plain.images).flatten(1).any(1)
    assert changed.float().mean() > 0.5
    assert mixed.losses[0] != plain.losses[0]


@pytest.mark.parametrize(("words", "share"), [("data.flip=true", 0.5), ("data.crop_padding=4", 80 / 81)])
def test_augmentation_changes_the_training_images(words: str, share: float, plain: Trained, in_directory: Path) -> None:
    """Half of the images are mirrored; all but one window of 81 move."""
    changed = (train(words).images != plain.images).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(share, abs=0.3)


def test_channels_last_changes_the_memory_order_only(plain: Trained, in_directory: Path) -> None:
    last = train("performance.channels_last=true")
    assert last.conv.is_contiguous(memory_format=torch.channels_last)
    assert not plain.conv.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.images, plain.images)
    assert last.losses == pytest.approx(plain.losses, abs=1e-4)


@pytest.mark.parametrize(
    ("precision", "weights"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)], ids=str
)
def test_precision(precision: str, weights: torch.dtype, plain: Trained, in_directory: Path) -> None:
    run = train(f"trainer.precision={precision}")
    assert run.conv.dtype == run.weights["model.conv1.weight"].dtype == weights
    assert run.losses[0] == pytest.approx(plain.losses[0], abs=0.1)
    assert run.losses[0] != plain.losses[0]


@pytest.mark.parametrize(
    ("words", "first", "channels"),
    [
        (["model=resnet18", "data.image_size=8"], "model.stem.0.weight", 64),
        pytest.param(
            ["model=resnet50", "data.image_size=8", "data.channels=3"],
            "model.stem.0.weight",
            64,
            marks=pytest.mark.slow,
        ),
        (["model=reference_cnn", "data.image_size=null"], "model.conv.weight", 32),
    ],
    ids=str,
)
def test_networks_and_sizes(words: list[str], first: str, channels: int, in_directory: Path) -> None:
    trained = train(*words, "batch.global_size=8")
    side, depth = 8, 3 if "data.channels=3" in words else 1
    assert trained.weights[first].shape[:2] == (channels, depth)
    assert trained.images.shape[1:] == (depth, side, side)
