"""Metrics of a classifier: against scikit-learn, and the same on one, two and three real ranks for any set size."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from tasks.cnn.module import Metrics
from tasks.cnn.report import plot_confusion, write_per_class
from trainer.data.samplers import Share, evaluation_batches

SIZES = [1, 2, 5, 64, 101]


def scored(count: int, num_classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(count, num_classes, generator=generator)
    return logits, torch.randint(0, num_classes, (count,), generator=generator)


def measured(count: int, share: Share) -> tuple[dict[str, float], torch.Tensor]:
    """One rank's part of an evaluation. Fillers are real rows, so that a counted filler changes the result."""
    logits, labels = scored(count)
    metrics = Metrics(10)
    for micro in evaluation_batches(count, share, batch_size=8):
        rows = torch.from_numpy(micro.indices)
        metrics(logits[rows][: micro.num_valid], labels[rows][: micro.num_valid])
    return metrics.compute()


def rank_main(rank: int, world_size: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    results = {count: measured(count, Share(rank, world_size)) for count in SIZES}
    plain = {count: [values, confusion.tolist()] for count, (values, confusion) in results.items()}
    Path(f"{folder}/{rank}.json").write_text(json.dumps(plain))
    dist.destroy_process_group()


@pytest.mark.parametrize("count", SIZES)
def test_against_scikit_learn(count: int) -> None:
    logits, labels = scored(count)
    values, confusion = measured(count, Share(0, 1))
    classes = list(range(10))
    probabilities = logits.double().softmax(1).numpy()
    assert values["accuracy"] == accuracy_score(labels, logits.argmax(1))
    assert values["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=classes), abs=1e-7)
    assert values["loss"] == pytest.approx(log_loss(labels, probabilities, labels=classes), abs=1e-6)
    np.testing.assert_array_equal(confusion.numpy(), confusion_matrix(labels, logits.argmax(1), labels=classes))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_agree_with_one_process(world_size: int, tmp_path: Path) -> None:
    mp.start_processes(rank_main, (world_size, str(tmp_path)), nprocs=world_size, start_method="fork")
    for rank in range(world_size):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        for count in SIZES:
            expected, expected_confusion = measured(count, Share(0, 1))
            values, confusion = results[str(count)]
            assert confusion == expected_confusion.tolist()
            # Sums in float64 of the same float32 losses; only their order differs.
            assert values.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-12)
            assert values == expected


def test_metrics_are_reset_after_each_evaluation() -> None:
    logits, labels = scored(20)
    metrics = Metrics(10)
    for _ in range(2):
        metrics(logits, labels)
        assert int(metrics.compute()[1].sum()) == 20


def test_top_five_of_five_classes_is_left_out() -> None:
    logits, labels = scored(20, num_classes=5)
    metrics = Metrics(5)
    metrics(logits, labels)
    assert set(metrics.compute()[0]) == {"loss", "accuracy"}


def test_accuracy_by_class(tmp_path: Path) -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    write_per_class(confusion, ["ant", "bee", "cat"], tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["num_images"], row["num_right"], row["accuracy"]) for row in rows] == [
        ("ant", "4", "3", "0.7500"),
        ("bee", "2", "2", "1.0000"),
        ("cat", "0", "0", ""),
    ]


@pytest.mark.parametrize("num_classes", [2, 30, 200])
def test_confusion_matrix_is_a_picture(tmp_path: Path, num_classes: int) -> None:
    confusion = torch.eye(num_classes, dtype=torch.int64) * 7
    plot_confusion(confusion, [f"class {i}" for i in range(num_classes)], "val, step 3", tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    full = (pixels == [8, 48, 107]).all(axis=1).sum()  # the dark end of matplotlib's Blues
    assert full / len(pixels) == pytest.approx(0.6 / num_classes, rel=0.6)
