"""Training step and metrics of the classifier."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from tasks.cnn.config import CNNConfig, size_problem
from tasks.cnn.data import CNNData, MixupBatch
from tasks.cnn.models import DEPTHS, build_model, count_flops
from tasks.cnn.report import ClassReport
from tasks.cnn.torchvision_names import from_torchvision
from trainer.config.own_parts import OwnModelConfig
from trainer.config.schema import Config, ModelConfig
from trainer.data.images.batches import ImageBatch
from trainer.data.images.config import ImageDataConfig
from trainer.errors import ConfigError
from trainer.module import StepSums, SupervisedModule
from trainer.own_metrics import OwnMetrics
from trainer.own_network import try_own_network

CNNRunConfig = Config[CNNConfig, ModelConfig, ImageDataConfig]


class CNNModule(SupervisedModule[CNNRunConfig]):
    """A network on normalised images, trained with cross-entropy.

    confusion: matrix (K, K) int64 of the last evaluation of "val" and "test", rows true and columns predicted.
    """

    def __init__(self, config: CNNRunConfig, data: CNNData) -> None:
        super().__init__(config)
        spec = data.spec
        self.class_names = spec.class_names
        self.model = build_model(config.model, spec.form.shape, len(spec.class_names))
        self.transform = data.transform()
        if isinstance(config.model, OwnModelConfig):
            example = (torch.zeros(1, *spec.form.shape),)
            shape = (1, len(spec.class_names))
            self.flops, self.training_flops = try_own_network(config.model, self.model, example, shape)
        else:
            self.flops = count_flops(self.model, spec.form.shape)
            self.training_flops = count_flops(self.model, spec.form.shape, training=True)
        self.val_metrics = Metrics(len(spec.class_names))
        self.test_metrics = Metrics(len(spec.class_names))
        self.confusion: dict[str, Tensor] = {}
        self.own_metrics = OwnMetrics(config.metrics, {"num_classes": len(spec.class_names), "task": "multiclass"})

    def own_names(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See TrainingModule: a ResNet also takes torchvision's names."""
        depths = DEPTHS.get(self.config.model.name)
        return weights if depths is None else from_torchvision(weights, depths)

    def describe(self) -> Mapping[str, object]:
        """Facts for the run's record."""
        return {"flops_per_image": self.flops}

    def configure_callbacks(self) -> list[pl.Callback]:
        """The report that an evaluation leaves in the run directory."""
        return [ClassReport(self.class_names, self.confusion)]

    def loss(self, network: nn.Module, micro: ImageBatch) -> tuple[Tensor, StepSums]:
        """Cross-entropy summed over the valid rows, and the number of right predictions; see SupervisedModule."""
        images = self.transform(micro.images, micro.draws)
        smoothing = self.config.task.label_smoothing
        if isinstance(micro, MixupBatch):
            share = micro.share[:, None, None, None]
            images = images * share + self.transform(micro.partner_images, micro.partner_draws) * (1 - share)
        logits = valid(network(images.to(self.dtype)), micro.num_valid).float()
        labels, predicted = valid(micro.labels, micro.num_valid), logits.argmax(dim=1)
        if isinstance(micro, MixupBatch):
            loss_sum, right = logits.new_zeros(()), logits.new_zeros(())
            partner = micro.partner_labels[: micro.num_valid], 1 - micro.share[: micro.num_valid]
            for targets, shares in ((labels, micro.share[: micro.num_valid]), partner):
                losses = cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
                loss_sum = loss_sum + (losses * shares).sum()
                right = right + ((predicted == targets) * shares).sum()
        else:
            loss_sum = cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
            right = (predicted == labels).sum(dtype=torch.float32)
        flops = float(self.training_flops * micro.num_valid)
        return loss_sum, {"accuracy": right, "num_flops": torch.full_like(right, flops, dtype=torch.float64)}

    def evaluation_step(self, batch: ImageBatch, metrics_prefix: str) -> None:
        """Add the valid rows of a batch to the metrics of "val" or "test"."""
        images = self.transform(batch.images, None)
        logits = self.model(images.to(self.dtype))[: batch.num_valid].float()
        labels = batch.labels[: batch.num_valid]
        self._metrics(metrics_prefix)(logits, labels)
        self.update_own_metrics(metrics_prefix, logits, labels)

    def evaluation_metrics(self, metrics_prefix: str) -> Mapping[str, float]:
        """Loss and accuracies over all ranks; the confusion matrix is kept for the report."""
        values, self.confusion[metrics_prefix] = self._metrics(metrics_prefix).compute()
        return values

    def _metrics(self, prefix: str) -> Metrics:
        return self.val_metrics if prefix == "val" else self.test_metrics


def valid(outputs: Tensor, num_valid: int) -> Tensor:
    """The first rows; a slice of all of them would be two more operations. Shapes: (B, ...) -> (num_valid, ...)."""
    return outputs if len(outputs) == num_valid else outputs[:num_valid]


class Metrics(nn.Module):
    """Sums and counts over all ranks, so that metrics do not depend on the number of ranks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Labels were checked when the data was loaded; torchmetrics' own check would wait for the GPU at every batch.
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.loss_sum = SumMetric().set_dtype(torch.float64)
        # Not torchmetrics' accuracy with top_k, which fails on a rank whose batch has no valid row. With five classes
        # or fewer the top five always include the label.
        self.top5_right = SumMetric().set_dtype(torch.float64) if num_classes > 5 else None

    def forward(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch. Shapes: logits (B, K) float, labels (B,) int64; B may be 0."""
        self.confusion.update(logits, labels)
        self.loss_sum.update(cross_entropy(logits, labels, reduction="none").double().sum())
        if self.top5_right is not None:
            self.top5_right.update((logits.topk(5).indices == labels[:, None]).sum())

    def compute(self) -> tuple[dict[str, float], Tensor]:
        """Means over all ranks and the confusion matrix (K, K) int64 on the CPU; resets all sums."""
        confusion = self.confusion.compute().cpu()
        count = int(confusion.sum())
        values = {"loss": float(self.loss_sum.compute()) / count, "accuracy": int(confusion.diagonal().sum()) / count}
        if self.top5_right is not None:
            values["top5_accuracy"] = float(self.top5_right.compute()) / count
        for metric in (self.confusion, self.loss_sum, self.top5_right):
            if metric is not None:
                metric.reset()
        return values, confusion


def build_module(config: CNNRunConfig, data: CNNData) -> CNNModule:
    """The CNN task's module. Raises: ConfigError: the images are too small for the network."""
    problem = size_problem(config.model, min(data.spec.form.shape[1:]))
    if problem is not None:
        raise ConfigError([problem])
    return CNNModule(config, data)
