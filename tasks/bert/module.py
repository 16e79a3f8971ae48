"""Fine-tuning of an encoder with a head: loss, learning rates, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.bert.baseline import constant_metrics, tfidf_metrics
from tasks.bert.config import BertConfig, BertModelConfig, BertTaskConfig, OwnTextModelConfig
from tasks.bert.data import TextData
from tasks.bert.flops import EncoderFlops
from tasks.bert.huggingface import write_directory
from tasks.bert.metrics import ClassMetrics, ScoreMetrics, TextMetrics, named, write_confusion
from tasks.bert.models import BuiltModel, announce, build_model, describe, encoder_layers, freeze, takes_types
from tasks.bert.own_model import build_own_model, own_takes_types
from tasks.bert.pooling import MeanPoolingClassifier
from trainer.collectives import all_reduce_sum
from trainer.config.groups import MuonConfig
from trainer.data.batch import StepBatch
from trainer.data.module import DataModule
from trainer.data.texts.buffer import TokenBatch
from trainer.errors import UserError
from trainer.module import StepSums, SupervisedModule
from trainer.observe.images import log_image
from trainer.own_metrics import OwnMetrics
from trainer.run.files import HF_DIR

SAMPLES_FOLDER = "samples"


class BertModule(SupervisedModule[BertConfig]):
    """Classifies, or scores, a sentence or a pair of sentences.

    class_weights: (C,) float32; None where all classes count alike. target_mean, target_std: scalars, of the training
    scores; the network's output is a score standardised by them, `outputs` is in the units of the scores. All three
    are saved with the weights.
    """

    class_weights: Tensor | None
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, config: BertConfig, data: TextData) -> None:
        super().__init__(config)
        self.task, self.data = config.task, data
        names = data.labels.names
        self.num_outputs = 1 if names is None else len(names)
        is_pair = len(data.columns) == 2
        # None for a network of the user's own.
        self.built: BuiltModel | None = None
        self.flops: EncoderFlops | None = None
        if isinstance(config.model, OwnTextModelConfig):
            longest = config.data.max_length
            self.model = build_own_model(config.model, data.tokenizer, self.num_outputs, longest, is_pair)
            self.takes_types = own_takes_types(self.model, is_pair)
        else:
            self.built = built = build_model(config.model, data.tokenizer, self.num_outputs, names, is_pair)
            self.model = built.model
            freeze(built.model, self.task.freeze_embeddings, self.task.freeze_layers)
            self.flops = EncoderFlops.of(built.model)
            self.takes_types = takes_types(built.model, is_pair)
        self.register_buffer("class_weights", class_weights(self.task, data))
        if names is None:
            mean, std = target_moments(data)
            self.register_buffer("target_mean", torch.tensor(mean, dtype=torch.float32))
            self.register_buffer("target_std", torch.tensor(std, dtype=torch.float32))
        self.weight_scale: Tensor | float = 1.0
        self.metrics = nn.ModuleDict({prefix: self._new_metrics() for prefix in ("val", "test")})
        facts = {"num_classes": self.num_outputs, "task": "multiclass"} if names is not None else {}
        self.own_metrics = OwnMetrics(config.metrics, facts)
        # Of the last validation, on rank 0.
        self.confusion: Tensor | None = None

    def describe(self) -> Mapping[str, Any]:
        """Facts for the run's record: the origin of the weights, and what the metrics must exceed."""
        return {**(describe(self.built) if self.built else {}), "baselines": self.baselines}

    @cached_property
    def baselines(self) -> dict[str, float]:
        """Metrics of a constant answer on each evaluation set, and of TF-IDF where task.baseline is set."""
        sets = self.data.token_sets
        train, evaluated = sets["train"].labels, [name for name in ("val", "test") if name in sets]
        metrics = {
            f"{name}/{metric}": value
            for name in evaluated
            for metric, value in constant_metrics(train, sets[name].labels, self.task.kind).items()
        }
        if self.task.baseline:
            rows = {name: (self.data.joined_texts(name), sets[name].labels) for name in ("train", *evaluated)}
            metrics |= tfidf_metrics(rows.pop("train"), rows, self.task.kind)
        return metrics

    def on_weights_loaded(self, sha256: str, new: Sequence[str]) -> None:
        """See TrainingModule: only a new head is at random values, and has a learning rate of its own."""
        if self.built is None:
            return
        initialised = [name.removeprefix("model.") for name in new]
        loaded = [name for name in self.model.state_dict() if name not in initialised]
        self.built = replace(self.built, sha256=sha256, loaded=loaded, initialised=initialised, unused=[])

    def on_fit_start(self) -> None:
        """Report the origin of the weights on the terminal and in the log."""
        if self.trainer.is_global_zero and self.built is not None and isinstance(self.config.model, BertModelConfig):
            announce(self.built, self.config.model)

    def on_train_end(self) -> None:
        """Log the baselines once, so that they stand in the table at the end but not in every evaluation's line."""
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(self.baselines, step=self.trainer.global_step)
            if self.confusion is not None:
                self._write_confusion("val", self.confusion)

    def write_results(self, run_dir: Path, weights: Mapping[str, Tensor]) -> None:
        """See TrainingModule: a directory for transformers, which has no class for the project's mean-pooled head, nor
        for a network of the user's own."""
        if self.built is None:
            return
        if isinstance(self.model, MeanPoolingClassifier):
            print(f"{HF_DIR}/ is not written: transformers has no classifier with a mean-pooled head, as this one has")
            return
        network = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
        moments = (weights["target_mean"], weights["target_std"]) if self.task.kind == "regression" else None
        length = self.config.data.max_length
        write_directory(run_dir / HF_DIR, self.built.model.config, network, self.data.tokenizer, length, moments)

    # ---- the step

    def training_step(self, batch: StepBatch[Any], batch_idx: int) -> StepSums:
        """See SupervisedModule. With class weights, torch's mean divides by the sum of the weights of the global batch,
        which needs one more reduction over ranks."""
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
            **({} if self.flops is None else {"num_flops": self.flops(lengths)}),
        }
        return self.loss_sum(outputs, micro.labels[: micro.num_valid]) * self.weight_scale, sums

    def outputs(self, network: nn.Module, micro: TokenBatch) -> Tensor:
        """Logits, or scores in the units of the labels, of the valid rows: (num_valid, C) float32."""
        types = {"token_type_ids": micro.token_type_ids()} if self.takes_types else {}
        mask = micro.attention_mask()
        if mask is None and self.built is None:
            mask = torch.ones_like(micro.input_ids)
        result = network(input_ids=micro.input_ids, attention_mask=mask, **types)
        logits = result.logits if self.built is not None else result
        outputs = logits[: micro.num_valid].float()
        return outputs * self.target_std + self.target_mean if self.task.kind == "regression" else outputs

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy by class weights, or squared error of standardised scores, summed over texts.

        Shapes: outputs (B, C), labels (B,). Returns: a scalar.
        """
        if self.task.kind == "regression":
            return ((outputs[:, 0] - labels) / self.target_std).square().sum()
        return F.cross_entropy(outputs, labels, weight=self.class_weights, reduction="sum")

    def parameter_groups(self, network: str) -> list[dict[str, Any]]:
        """See TrainingModule; learning rates fall with depth by layer_lr_decay, times head_lr_scale for a new head.

        The head comes last, so that optim/lr, which is the first group's, is that of the encoder.
        """
        optimizer, task, built = self.config.optimizer, self.task, self.built
        # Muon has two learning rates of its own, and a model of random weights is as new as its head.
        scale = (
            1.0 if isinstance(optimizer, MuonConfig) or built is None or built.sha256 is None else task.head_lr_scale
        )
        if built is None or (task.layer_lr_decay == 1.0 and scale == 1.0):
            return super().parameter_groups(network)
        names = set(built.initialised)
        new = {id(p) for name, p in self.model.named_parameters() if name in names}
        levels = self._parameters_from_top() if task.layer_lr_decay != 1.0 else [list(self.model.parameters())]
        groups, head = [], []
        for steps_below, parameters in enumerate(levels):
            rate = optimizer.lr * task.layer_lr_decay**steps_below
            trained = [p for p in parameters if p.requires_grad]
            groups += _with_and_without_decay([p for p in trained if id(p) not in new], rate)
            head += _with_and_without_decay([p for p in trained if id(p) in new], rate * scale)
        return groups + head

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
        is_score = self.task.kind == "regression"
        self.update_own_metrics(metrics_prefix, outputs[:, 0] if is_score else outputs, labels)

    def evaluation_metrics(self, metrics_prefix: str) -> Mapping[str, float | Tensor]:
        """See TrainingModule."""
        values = self._metrics(metrics_prefix).compute()
        if "confusion" in values and self.trainer.is_global_zero:
            if self.trainer.state.fn == TrainerFn.FITTING:
                # Drawn once, at the end of training: a picture of many classes takes a second.
                self.confusion = values["confusion"]
            else:
                self._write_confusion(metrics_prefix, values["confusion"])
        return named(values)

    def _write_confusion(self, prefix: str, matrix: Tensor) -> None:
        assert self.data.labels.names is not None
        folder = Path(self.trainer.default_root_dir) / SAMPLES_FOLDER
        picture = write_confusion(matrix, self.data.labels.names, folder, f"confusion-{prefix}")
        log_image(self.trainer, picture)

    def _metrics(self, prefix: str) -> TextMetrics:
        metrics = self.metrics[prefix]
        assert isinstance(metrics, TextMetrics)
        return metrics

    def _new_metrics(self) -> TextMetrics:
        return ScoreMetrics() if self.data.labels.names is None else ClassMetrics(self.num_outputs)


def _with_and_without_decay(parameters: list[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """Groups of one learning rate: matrices, which decay, and biases and norms, which do not."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "lr": lr},
        {"params": [p for p in parameters if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]


def class_weights(task: BertTaskConfig, data: TextData) -> Tensor | None:
    """Weight of each class, (C,) float32; None where all count alike. Without training data, a place for saved ones.

    Raises: UserError: not one weight a class, or a class without a training text.
    """
    if task.class_weights is None or data.labels.names is None:
        return None
    if task.class_weights != "balanced":
        if len(task.class_weights) != len(data.labels.names):
            raise UserError(f"task.class_weights={task.class_weights}: the data has {len(data.labels.names)} classes")
        return torch.tensor(task.class_weights, dtype=torch.float32)
    if "train" not in data.token_sets:
        return torch.ones(len(data.labels.names))
    counts = data.class_counts()
    if not counts.all():
        empty = data.labels.names[int(counts.argmin())]
        raise UserError(f"task.class_weights=balanced: no training text has the label {empty}")
    return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()


def target_moments(data: TextData) -> tuple[float, float]:
    """Mean and standard deviation of the training scores. Without training data, places for saved ones.

    Raises: UserError: all scores are equal.
    """
    if "train" not in data.token_sets:
        return 0.0, 1.0
    scores = data.token_sets["train"].labels.astype(np.float64)
    if scores.min() == scores.max():
        raise UserError(f"data.label={data.labels.column}: all scores of the training split are {scores[0]:g}")
    return float(scores.mean()), float(scores.std())


def build_module(config: BertConfig, data: DataModule) -> BertModule:
    """See TaskSpec.module."""
    assert isinstance(data, TextData)
    return BertModule(config, data)
