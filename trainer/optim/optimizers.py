"""Optimizers and schedules from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from trainer.config.groups import AdamConfig, MuonConfig, SGDConfig
from trainer.config.schema import Config, SchedulerConfig
from trainer.optim.lr_schedule import lr_factor

ParameterGroups = list[dict[str, Any]]


def build_optimizer(groups: ParameterGroups, config: Config) -> Optimizer:
    """The optimizer of one network; empty groups are left out.

    Args: groups: each with "params" and, where they depart from the configuration, "lr" or "weight_decay".
    """
    optimizer = config.optimizer
    groups = [group for group in groups if group["params"]]
    common = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if isinstance(optimizer, SGDConfig):
        sgd = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov, "fused": optimizer.fused}
        return torch.optim.SGD(groups, **common, **sgd)
    if isinstance(optimizer, AdamConfig):
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.name]
        betas = (optimizer.betas[0], optimizer.betas[1])
        return kind(groups, betas=betas, eps=optimizer.eps, fused=optimizer.fused, **common)
    if isinstance(optimizer, MuonConfig):
        return MuonWithAdamW(groups, optimizer)
    raise TypeError(f"no optimizer is built from {type(optimizer).__name__}")


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon, which takes matrices only, and AdamW for the rest, as one optimizer.

    The two share their groups and state with this object, so schedulers, checkpoints and strategies see one optimizer.
    """

    def __init__(self, groups: ParameterGroups, config: MuonConfig) -> None:
        matrices = [_subset(group, lambda p: p.ndim == 2) for group in groups]
        others = [_subset(group, lambda p: p.ndim != 2) for group in groups]
        matrices, others = ([g for g in part if g["params"]] for part in (matrices, others))
        decay = config.weight_decay
        muon = {"lr": config.lr, "weight_decay": decay, "momentum": config.momentum, "nesterov": config.nesterov}
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, **muon))
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=config.adamw_lr, weight_decay=decay))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts step on this object's groups and state, also after those were loaded from a checkpoint."""
        start = 0
        for part in self.parts:
            part.param_groups = self.param_groups[start : start + len(part.param_groups)]
            start += len(part.param_groups)
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See torch.optim.Optimizer; the parts follow."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def _subset(group: dict[str, Any], wanted: Callable[[torch.Tensor], bool]) -> dict[str, Any]:
    parameters: Iterable[torch.Tensor] = group["params"]
    return {**group, "params": [parameter for parameter in parameters if wanted(parameter)]}


def build_scheduler(optimizer: Optimizer, config: SchedulerConfig, total_steps: int) -> LRScheduler:
    """The learning rate over `total_steps` steps, as factors of each group's own rate."""
    if config.name == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        # Momentum is left alone, so that the schedule means the same for every optimizer.
        return OneCycleLR(
            optimizer, rates, total_steps=total_steps, pct_start=config.warmup_fraction, cycle_momentum=False
        )
    return LambdaLR(optimizer, lambda step: lr_factor(config, step, total_steps))
