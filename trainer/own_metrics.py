"""Metrics of the user's own, beside those of the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from trainer.config.own_parts import TARGET, OwnMetricConfig
from trainer.errors import UserError
from trainer.parts import build_part, first_line


class OwnMetrics(nn.Module):
    """One of each metric for "val" and "test"; torchmetrics adds up their states over ranks.

    Args: configs: by the name under which a metric is logged. facts: that only the data knows, such as num_classes.
    Raises: UserError: a metric cannot be built.
    """

    def __init__(self, configs: Mapping[str, OwnMetricConfig], facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.words = {name: f"metrics.{name}.{TARGET}={config.target}" for name, config in configs.items()}
        built = {
            # Of an object that a Python call has passed each set gets a copy.
            prefix: {n: deepcopy(build_part(f"metrics.{n}", config, Metric, facts)) for n, config in configs.items()}
            for prefix in ("val", "test")
        }
        self.metrics = nn.ModuleDict({prefix: nn.ModuleDict(metrics) for prefix, metrics in built.items()})

    def update(self, prefix: str, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch. Shapes: outputs (B, K), labels (B,). Raises: UserError: a metric does not take them."""
        if not len(labels):  # a rank without a share of the batch, which many metrics do not expect
            return
        given = f"outputs {tuple(outputs.shape)} and labels {tuple(labels.shape)}"
        for name, metric in self._of(prefix).items():
            self._try(name, f"fails on {given}", lambda metric=metric: metric.update(outputs.detach(), labels))

    def compute(self, prefix: str, measured: Mapping[str, Any]) -> dict[str, float]:
        """Values over all ranks since the last call. Args: measured: the task's own, whose names are taken.

        Raises: UserError: a value is no single number, or a name is taken.
        """
        values: dict[str, float] = {}
        for name, metric in self._of(prefix).items():
            if name in measured:
                raise UserError(f"metrics.{name}: the task measures {name} itself; choose another name")
            value = self._try(name, "gives no value", metric.compute)
            if not isinstance(value, int | float) and not (isinstance(value, Tensor) and value.numel() == 1):
                found = f"values of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"{self.words[name]}: gives {found}; one number is needed")
            values[name] = float(value)
            metric.reset()
        return values

    def _of(self, prefix: str) -> dict[str, Metric]:
        return cast("dict[str, Metric]", dict(cast(nn.ModuleDict, self.metrics[prefix]).items()))

    def _try(self, name: str, what: str, call: Callable[[], Any]) -> Any:
        try:
            with torch.no_grad():
                return call()
        except Exception as error:
            raise UserError(f"{self.words[name]}: {what}: {type(error).__name__}: {first_line(error)}") from error
