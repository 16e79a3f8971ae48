"""Optimizers and schedules from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from trainer.config.groups import AdamConfig, MuonConfig, SGDConfig
from trainer.config.own_parts import OwnOptimizerConfig, OwnSchedulerConfig
from trainer.config.schema import Config, SchedulerConfig
from trainer.optim.lr_schedule import lr_factor
from trainer.optim.own import build_own_optimizer, build_own_scheduler

ParameterGroups = list[dict[str, Any]]


def build_optimizer(groups: ParameterGroups, config: Config, hidden: Collection[nn.Parameter]) -> Optimizer:
    """The optimizer of one network; empty groups are left out.

    Args: groups: each with "params" and, where they differ from the configuration, "lr" or "weight_decay". hidden: the
        weights that Muon takes; other optimizers take all.
    Raises: UserError: an optimizer of the user's own cannot be built.
    """
    optimizer = config.optimizer
    groups = _nonempty(groups)
    common = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if isinstance(optimizer, OwnOptimizerConfig):
        return build_own_optimizer(groups, optimizer)
    if isinstance(optimizer, SGDConfig):
        sgd = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov, "fused": optimizer.fused}
        return torch.optim.SGD(groups, **common, **sgd)
    if isinstance(optimizer, AdamConfig):
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.name]
        betas = (optimizer.betas[0], optimizer.betas[1])
        return kind(groups, betas=betas, eps=optimizer.eps, fused=optimizer.fused, **common)
    if isinstance(optimizer, MuonConfig):
        return MuonWithAdamW(groups, optimizer, hidden)
    raise TypeError(f"no optimizer is built from {type(optimizer).__name__}")


class KernelMuon(torch.optim.Muon):
    """torch.optim.Muon that also takes convolution kernels, as matrices with a row for each slice of dimension 0.

    torch's own refuses them; the published implementation (Jordan 2024) flattens them in the same way.
    """

    def __init__(self, groups: ParameterGroups, **options: Any) -> None:
        # The constructor refuses everything but matrices, so it gets one that is then replaced.
        super().__init__([nn.Parameter(torch.empty(1, 1))], **options)
        self.param_groups.clear()
        for group in groups:
            self.add_param_group(group)

    def _init_group(
        self,
        group: MutableMapping[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        muon_momentum_bufs: list[Tensor],
    ) -> bool:
        """torch's hook: hand over matrices that share the memory of parameters and momentum buffers."""
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            elif buffer.stride() != parameter.stride():  # loaded from a run with another memory format
                state["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
            # In the parameter's memory order a channels-last kernel is a view too. The order of columns is free:
            # orthogonalisation of a matrix with permuted columns permutes the columns of the result.
            order = sorted(range(1, parameter.ndim), key=parameter.stride, reverse=True)
            rows = len(parameter)
            params_with_grad.append(parameter.permute(0, *order).view(rows, -1))
            grads.append(parameter.grad.permute(0, *order).reshape(rows, -1))
            muon_momentum_bufs.append(state["momentum_buffer"].permute(0, *order).view(rows, -1))
        return False  # no complex parameters


class MuonWithAdamW(Optimizer):
    """Muon for hidden weights and AdamW for all others, as one optimizer.

    The two share their groups and state with this object, so schedulers, checkpoints and strategies see one optimizer.
    A group's own "lr" is meant relative to `optimizer.lr`, so AdamW's part of the group is scaled by the same factor.
    """

    def __init__(self, groups: ParameterGroups, config: MuonConfig, hidden: Collection[nn.Parameter]) -> None:
        for_muon = _nonempty([{**g, "params": [p for p in g["params"] if p in hidden]} for g in groups])
        for_adamw = _nonempty([{**g, "params": [p for p in g["params"] if p not in hidden]} for g in groups])
        for group in for_adamw:
            group["lr"] = group.get("lr", config.lr) / config.lr * config.adamw_lr
        decay = config.weight_decay
        self.parts: list[Optimizer] = []
        if for_muon:
            options = {"momentum": config.momentum, "nesterov": config.nesterov}
            self.parts.append(KernelMuon(for_muon, lr=config.lr, weight_decay=decay, **options))
        if for_adamw:
            self.parts.append(torch.optim.AdamW(for_adamw, weight_decay=decay))
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
        """See torch.optim.Optimizer; it replaces groups and state, so the parts get the new ones."""
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


def _nonempty(groups: ParameterGroups) -> ParameterGroups:
    return [group for group in groups if group["params"]]


def build_scheduler(optimizer: Optimizer, config: SchedulerConfig, total_steps: int) -> LRScheduler:
    """The learning rate over `total_steps` steps, as factors of each group's own."""
    if isinstance(config, OwnSchedulerConfig):
        return build_own_scheduler(optimizer, config, total_steps)
    return LambdaLR(optimizer, lambda step: lr_factor(config, step, total_steps))
