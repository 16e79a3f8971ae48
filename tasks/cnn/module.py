"""The classifier's step and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from tasks.cnn.config import CNNConfig, size_problem
from tasks.cnn.data import CNNData, MixupBatch
from tasks.cnn.models import build_model, count_flops
from tasks.cnn.report import ClassReport
from trainer.config.schema import Config
from trainer.data.images.batches import ImageBatch
from trainer.errors import ConfigError
from trainer.module import StepSums, SupervisedModule

BACKWARD_FLOPS = 2  # the backward pass computes two products for each one of the forward pass


class CNNModule(SupervisedModule):
    """A network on normalised images, trained with cross-entropy.

    confusion: matrix (K, K) int64 of the last evaluation of "val" and "test", rows true and columns predicted.
    """

    def __init__(self, config: Config, data: CNNData) -> None:
        super().__init__(config)
        self.task = cast(CNNConfig, config.task)
        self.class_names = data.class_names
        self.model = build_model(config.model, data.image_shape, len(data.class_names))
        self.transform = data.transform()
        self.flops = count_flops(self.model, data.image_shape)
        self.metrics = nn.ModuleDict({name: Metrics(len(data.class_names)) for name in ("val", "test")})
        self.confusion: dict[str, Tensor] = {}

    def describe(self) -> Mapping[str, object]:
        """Facts for the run's record."""
        return {"flops_per_image": self.flops}

    def configure_callbacks(self) -> list[pl.Callback]:
        """Lightning's hook."""
        return [ClassReport(self.class_names)]

    def loss(self, network: nn.Module, micro: ImageBatch) -> tuple[Tensor, StepSums]:
        """See SupervisedModule."""
        images = self.transform(micro.images, micro.draws)
        targets = [(micro.labels, torch.ones_like(micro.draws[:, 0]))]
        if isinstance(micro, MixupBatch):
            share = micro.share[:, None, None, None]
            images = images * share + self.transform(micro.partner_images, micro.partner_draws) * (1 - share)
            targets = [(micro.labels, micro.share), (micro.partner_labels, 1 - micro.share)]
        logits = network(images.to(self.dtype))[: micro.num_valid].float()
        predicted = logits.argmax(dim=1)
        loss_sum, right = logits.new_zeros(()), logits.new_zeros(())
        for labels, shares in targets:
            labels, shares = labels[: micro.num_valid], shares[: micro.num_valid]
            losses = cross_entropy(logits, labels, reduction="none", label_smoothing=self.task.label_smoothing)
            loss_sum = loss_sum + (losses * shares).sum()
            right = right + ((predicted == labels) * shares).sum()
        flops = float(self.flops) * (1 + BACKWARD_FLOPS) * micro.num_valid
        return loss_sum, {"accuracy": right, "num_flops": torch.full_like(right, flops)}

    def evaluation_step(self, batch: ImageBatch, metrics_prefix: str) -> None:
        """See TrainingModule."""
        images = self.transform(batch.images, None)
        logits = self.model(images.to(self.dtype))[: batch.num_valid].float()
        self.metrics[metrics_prefix](logits, batch.labels[: batch.num_valid])

    def evaluation_metrics(self, metrics_prefix: str) -> Mapping[str, float]:
        """See TrainingModule."""
        values, self.confusion[metrics_prefix] = cast(Metrics, self.metrics[metrics_prefix]).compute()
        return values


class Metrics(nn.Module):
    """Sums and counts over all ranks, so that they do not depend on how many there are."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Labels were checked when the data was loaded; torchmetrics' own check would wait for the GPU at every batch.
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.loss_sum = SumMetric().set_dtype(torch.float64)
        # Not torchmetrics' accuracy with top_k, which fails on a rank whose batch holds only a filler. With five
        # classes or fewer one of the best five is always right.
        self.top5_right = SumMetric().set_dtype(torch.float64) if num_classes > 5 else None

    def forward(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch. Shapes: logits (B, K) float, labels (B,) int64; B may be 0."""
        self.confusion.update(logits, labels)
        self.loss_sum.update(cross_entropy(logits, labels, reduction="none").double().sum())
        if self.top5_right is not None:
            self.top5_right.update((logits.topk(5).indices == labels[:, None]).sum())

    def compute(self) -> tuple[dict[str, float], Tensor]:
        """Means over all ranks and the confusion matrix (K, K) int64 on the CPU, and start anew."""
        confusion = self.confusion.compute().cpu()
        count = int(confusion.sum())
        values = {"loss": float(self.loss_sum.compute()) / count, "accuracy": int(confusion.diagonal().sum()) / count}
        if self.top5_right is not None:
            values["top5_accuracy"] = float(self.top5_right.compute()) / count
        for metric in self.children():
            cast(SumMetric, metric).reset()
        return values, confusion


def build_module(config: Config, data: CNNData) -> CNNModule:
    """The CNN task's module. Raises: ConfigError: the images are too small for the network."""
    problem = size_problem(config.model, min(data.image_shape[1:]))
    if problem is not None:
        raise ConfigError([problem])
    return CNNModule(config, data)
