"""Evaluation metrics of classification and regression, over all ranks."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics import (
    MeanMetric,
    MeanSquaredError,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    SpearmanCorrCoef,
)
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)

MAX_TICKS, MAX_LABEL = 100, 24  # classes named beside a confusion matrix, and characters of each name


class TextMetrics(nn.Module, ABC):
    """Metrics of one set; `loss` is the mean over its texts."""

    def __init__(self, metrics: dict[str, Metric]) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.others = MetricCollection(dict(metrics))

    def update(self, loss_sum: Tensor, weight: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Add texts. loss_sum, weight: scalars; outputs (B, C); labels (B,)."""
        if len(labels):
            self.loss.update(loss_sum / weight, weight)
            self.others.update(self.prediction(outputs), labels)

    @abstractmethod
    def prediction(self, outputs: Tensor) -> Tensor:
        """What is compared with the labels, (B,)."""

    def compute(self) -> dict[str, Tensor]:
        """All metrics over all ranks since the last call."""
        values = {"loss": self.loss.compute(), **self.others.compute()}
        self.loss.reset()
        self.others.reset()
        return values


class ClassMetrics(TextMetrics):
    """Accuracy, macro F1, Matthews correlation and the confusion matrix (rows are the true classes).

    For two classes also precision, recall and F1 of the positive class, which is the second one.
    """

    def __init__(self, num_classes: int) -> None:
        metrics: dict[str, Metric] = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "f1_macro": MulticlassF1Score(num_classes, average="macro"),
            "mcc": MulticlassMatthewsCorrCoef(num_classes),
            "confusion": MulticlassConfusionMatrix(num_classes),
        }
        if num_classes == 2:
            metrics |= {"precision": BinaryPrecision(), "recall": BinaryRecall(), "f1": BinaryF1Score()}
        super().__init__(metrics)

    def prediction(self, outputs: Tensor) -> Tensor:
        """The class with the largest logit."""
        return outputs.argmax(dim=-1)


class ScoreMetrics(TextMetrics):
    """Pearson's and Spearman's correlation, and the root of the mean squared error in the units of the scores."""

    def __init__(self) -> None:
        rmse = MeanSquaredError(squared=False)
        super().__init__({"pearson": PearsonCorrCoef(), "rmse": rmse, "spearman": SpearmanCorrCoef()})

    def prediction(self, outputs: Tensor) -> Tensor:
        """The score."""
        return outputs[:, 0]


def write_confusion(matrix: Tensor, names: list[str], folder: Path, name: str) -> Path:
    """Write a confusion matrix as CSV and as a picture with abbreviated names. Returns: the picture's path."""
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    counts = matrix.cpu().tolist()
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([label, *row] for label, row in zip(names, counts, strict=True))
    side = min(20.0, 3.0 + 0.3 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix.cpu().to(torch.float32) / matrix.cpu().sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), vmin=0.0, vmax=1.0, cmap="Blues")
    size = 8 if len(names) <= 30 else 5
    shown = range(0, len(names), -(-len(names) // MAX_TICKS))
    ticks = [short_name(names[number]) for number in shown]
    axes.set_xticks(shown, ticks, rotation=90, fontsize=size)
    axes.set_yticks(shown, ticks, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.savefig(folder / f"{name}.png", dpi=120)
    return folder / f"{name}.png"


def short_name(name: str) -> str:
    """A label of at most MAX_LABEL characters, for a picture."""
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"


def named(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The scalars among the metrics, which is what is logged."""
    return {name: float(value) for name, value in metrics.items() if value.ndim == 0}
