"""Fine-tuning of an encoder with a head: the loss, the rates of learning, the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.bert.config import BertModelConfig, BertTaskConfig
from tasks.bert.data import TextData
from tasks.bert.flops import EncoderFlops
from tasks.bert.metrics import ClassMetrics, ScoreMetrics, TextMetrics, named, write_confusion
from tasks.bert.models import announce, build_model, describe, encoder_layers, freeze, takes_types
from trainer.collectives import all_reduce_sum
from trainer.config.schema import Config
from trainer.data.batch import StepBatch
from trainer.data.module import DataModule
from trainer.data.texts.buffer import TokenBatch
from trainer.errors import UserError
from trainer.module import StepSums, SupervisedModule
from trainer.observe.images import log_image

SAMPLES_FOLDER = "samples"


class BertModule(SupervisedModule):
    """One of several classes, or a score, for a sentence or a pair."""

    class_weights: Tensor | None

    def __init__(self, config: Config, data: TextData) -> None:
        super().__init__(config)
        assert isinstance(config.task, BertTaskConfig)
        assert isinstance(config.model, BertModelConfig)
        self.task, self.data = config.task, data
        names = data.labels.names
        self.num_outputs = 1 if names is None else len(names)
        self.built = built = build_model(config.model, data.tokenizer, self.num_outputs, names)
        self.model = built.model
        freeze(built.model, self.task.freeze_embeddings, self.task.freeze_layers)
        self.flops = EncoderFlops.of(built.model)
        self.takes_types = takes_types(built.model, is_pair=len(data.columns) == 2)
        self.register_buffer("class_weights", class_weights(self.task, data), persistent=False)
        self.weight_scale: Tensor | float = 1.0
        self.metrics = nn.ModuleDict({prefix: self._new_metrics() for prefix in ("val", "test")})

    def describe(self) -> Mapping[str, Any]:
        """Facts for the run's record: which weights were loaded, and which started at random."""
        return describe(self.built)

    def on_fit_start(self) -> None:
        """Report the origin of the weights on the terminal and in the log."""
        if self.trainer.is_global_zero:
            assert isinstance(self.config.model, BertModelConfig)
            announce(self.built, self.config.model)

    # ---- the step

    def training_step(self, batch: StepBatch[Any], batch_idx: int) -> StepSums:
        """See SupervisedModule. With class weights the mean is over the weights of the global batch, as torch defines
        it, and those are known only together."""
        if self.class_weights is not None:
            weights = [self.class_weights[micro.labels[: micro.num_valid]].sum() for micro in batch.micro_batches]
            self.weight_scale = batch.num_samples / all_reduce_sum(torch.stack(weights).sum())
        return super().training_step(batch, batch_idx)

    def loss(self, network: nn.Module, micro: TokenBatch) -> tuple[Tensor, StepSums]:
        """See SupervisedModule."""
        outputs = self.outputs(network, micro)
        lengths, width = micro.lengths[: micro.num_valid], micro.input_ids.shape[1]
        num_padded = torch.full_like(lengths, width).sum()
        sums = {
            "padding_fraction": micro.num_valid - lengths.sum() / width,
            "num_tokens": lengths.sum(),
            "num_padded_tokens": num_padded,
            "num_flops": self.flops(lengths),
        }
        return self.loss_sum(outputs, micro.labels[: micro.num_valid]) * self.weight_scale, sums

    def outputs(self, network: nn.Module, micro: TokenBatch) -> Tensor:
        """Logits or scores of the valid rows, (num_valid, C) float32."""
        types = {"token_type_ids": micro.token_type_ids()} if self.takes_types else {}
        result = network(input_ids=micro.input_ids, attention_mask=micro.attention_mask(), **types)
        return result.logits[: micro.num_valid].float()

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, by class weights, or squared error, summed over texts. outputs (B, C), labels (B,)."""
        if self.task.kind == "regression":
            return F.mse_loss(outputs[:, 0], labels, reduction="sum")
        return F.cross_entropy(outputs, labels, weight=self.class_weights, reduction="sum")

    def parameter_groups(self, network: str) -> list[dict[str, Any]]:
        """See TrainingModule; with layer_lr_decay the rate falls from the head down to the embeddings."""
        if self.task.layer_lr_decay == 1.0:
            return super().parameter_groups(network)
        groups = []
        for steps_below, parameters in enumerate(self._parameters_from_top()):
            rate = self.config.optimizer.lr * self.task.layer_lr_decay**steps_below
            trained = [p for p in parameters if p.requires_grad]
            groups.append({"params": [p for p in trained if p.ndim >= 2], "lr": rate})
            groups.append({"params": [p for p in trained if p.ndim < 2], "lr": rate, "weight_decay": 0.0})
        return groups

    def _parameters_from_top(self) -> list[list[nn.Parameter]]:
        """Head, last layer, ..., first layer, embeddings."""
        model: Any = self.model
        lower = [model.base_model.get_submodule("embeddings"), *encoder_layers(model)]
        placed = {id(p) for module in lower for p in module.parameters()}
        head = [p for p in model.parameters() if id(p) not in placed]
        return [head, *(list(module.parameters()) for module in reversed(lower))]

    # ---- evaluation

    def evaluation_step(self, batch: TokenBatch, metrics_prefix: str) -> None:
        """See TrainingModule."""
        outputs, labels = self.outputs(self.model, batch), batch.labels[: batch.num_valid]
        weights = torch.ones_like(outputs[:, 0]) if self.class_weights is None else self.class_weights[labels]
        self._metrics(metrics_prefix).update(self.loss_sum(outputs, labels), weights.sum(), outputs, labels)

    def evaluation_metrics(self, metrics_prefix: str) -> Mapping[str, float | Tensor]:
        """See TrainingModule."""
        values = self._metrics(metrics_prefix).compute()
        names = self.data.labels.names
        if metrics_prefix == "test" and names is not None and self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir) / SAMPLES_FOLDER
            picture = write_confusion(values["confusion"], names, folder, "confusion-test")
            log_image(self.trainer, "test/confusion", picture)
        return named(values)

    def _metrics(self, prefix: str) -> TextMetrics:
        metrics = self.metrics[prefix]
        assert isinstance(metrics, TextMetrics)
        return metrics

    def _new_metrics(self) -> TextMetrics:
        return ScoreMetrics() if self.data.labels.names is None else ClassMetrics(self.num_outputs)


def class_weights(task: BertTaskConfig, data: TextData) -> Tensor | None:
    """Weight of each class, (C,) float32; None where all count alike.

    Raises: UserError: not one weight a class, or a class without a training text.
    """
    if task.class_weights is None or data.labels.names is None:
        return None
    if task.class_weights != "balanced":
        if len(task.class_weights) != len(data.labels.names):
            raise UserError(f"task.class_weights={task.class_weights}: the data has {len(data.labels.names)} classes")
        return torch.tensor(task.class_weights, dtype=torch.float32)
    counts = data.class_counts()
    if not counts.all():
        empty = data.labels.names[int(counts.argmin())]
        raise UserError(f"task.class_weights=balanced: no training text has the label {empty!r}")
    return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()


def build_module(config: Config, data: DataModule) -> BertModule:
    """See TaskSpec.module."""
    assert isinstance(data, TextData)
    return BertModule(config, data)
