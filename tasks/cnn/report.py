"""Files that an evaluation writes to the run directory: accuracy by class, and the confusion matrix as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from trainer.observe.images import log_image

MOST_NUMBERED_CLASSES, MOST_NAMED_CLASSES = 20, 60  # with more, counts and then names would be illegible


class ClassReport(pl.Callback):
    """Writes confusion_<set>.png and per_class_<set>.csv at the end of training and after a test or validation run.

    Args: confusion: matrices (K, K) int64 of the last evaluation by set, which the module keeps up to date.
    """

    def __init__(self, class_names: list[str], confusion: Mapping[str, Tensor]) -> None:
        self.class_names, self.confusion = class_names, confusion

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last evaluation during training."""
        self._write(trainer, "val")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write an evaluation outside of training; during training only the last one is written."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._write(trainer, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the evaluation on the test set."""
        self._write(trainer, "test")

    def _write(self, trainer: pl.Trainer, name: str) -> None:
        confusion = self.confusion.get(name)
        if confusion is None or not trainer.is_global_zero:
            return
        directory = Path(trainer.default_root_dir)
        write_per_class(confusion, self.class_names, directory / f"per_class_{name}.csv")
        picture = directory / f"confusion_{name}.png"
        plot_confusion(confusion, self.class_names, f"{name}, step {trainer.global_step}", picture)
        log_image(trainer, picture)


def write_per_class(confusion: Tensor, class_names: list[str], path: Path) -> None:
    """Write one line per class. Args: confusion (K, K) int64, rows true and columns predicted."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "num_images", "num_right", "accuracy"])
        for number, name in enumerate(class_names):
            count, right = int(confusion[number].sum()), int(confusion[number, number])
            writer.writerow([name, count, right, f"{right / count:.4f}" if count else ""])


def plot_confusion(confusion: Tensor, class_names: list[str], title: str, path: Path) -> None:
    """Draw a confusion matrix (K, K): the colour is the share of the true class, the numbers are counts."""
    from matplotlib.figure import Figure

    num_classes = len(class_names)
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    accuracy = int(confusion.diagonal().sum()) / max(1, int(confusion.sum()))
    side = min(12.0, 3.0 + 0.45 * num_classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_title(f"{title}, accuracy {accuracy:.4f}")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if num_classes <= MOST_NAMED_CLASSES:
        axes.set_xticks(range(num_classes), class_names, rotation=90)
        axes.set_yticks(range(num_classes), class_names)
    if num_classes <= MOST_NUMBERED_CLASSES:
        for row in range(num_classes):
            for column in range(num_classes):
                colour = "white" if shares[row, column] > 0.5 else "black"
                count = int(confusion[row, column])
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=120)
