"""What a classifier or a scorer is judged by, over all ranks."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)


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
        """All metrics over all ranks; starts anew."""
        values = {"loss": self.loss.compute(), **self.others.compute()}
        self.loss.reset()
        self.others.reset()
        return values


class ClassMetrics(TextMetrics):
    """Accuracy, macro F1, Matthews correlation and the confusion matrix (rows are the true classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes, average="macro"),
                "mcc": MulticlassMatthewsCorrCoef(num_classes),
                "confusion": MulticlassConfusionMatrix(num_classes),
            }
        )

    def prediction(self, outputs: Tensor) -> Tensor:
        """The class with the largest logit."""
        return outputs.argmax(dim=-1)


class ScoreMetrics(TextMetrics):
    """Spearman's rank correlation and Pearson's; `loss` is the mean squared error."""

    def __init__(self) -> None:
        super().__init__({"spearman": SpearmanCorrCoef(), "pearson": PearsonCorrCoef()})

    def prediction(self, outputs: Tensor) -> Tensor:
        """The score."""
        return outputs[:, 0]


def write_confusion(matrix: Tensor, names: list[str], folder: Path, name: str) -> Path:
    """A confusion matrix as CSV and as a picture. Returns: the picture's path."""
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
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.savefig(folder / f"{name}.png", dpi=120)
    return folder / f"{name}.png"


def named(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars only: what is logged."""
    return {name: float(value) for name, value in metrics.items() if value.ndim == 0}
