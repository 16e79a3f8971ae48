"""Optimizers and schedules of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from trainer.config.own_parts import TARGET, OwnOptimizerConfig, OwnSchedulerConfig
from trainer.errors import UserError
from trainer.parts import build_part, find_part, first_line, takes


def build_own_optimizer(groups: list[dict[str, Any]], config: OwnOptimizerConfig) -> Optimizer:
    """The optimizer of one network. Args: groups: each with "params"; biases and norms have "weight_decay" 0.

    Raises: UserError: it cannot be built, or has no parameter for a configured value.
    """
    target, word = find_part("optimizer", config), f"optimizer.{TARGET}={config.target}"
    facts: dict[str, Any] = {"lr": config.lr}
    if not takes(target, "lr"):
        raise UserError(f"{word}: has no parameter lr, so optimizer.lr and scheduler=... would have no effect")
    if takes(target, "weight_decay"):
        facts["weight_decay"] = config.weight_decay
    elif config.weight_decay:
        raise UserError(f"optimizer.weight_decay={config.weight_decay}: {word} has no such parameter; use 0")
    optimizer = build_part("optimizer", config, Optimizer, facts, groups)
    given = {id(parameter) for group in groups for parameter in group["params"]}
    if {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} != given:
        raise UserError(f"{word}: does not keep the parameters that it is given")
    return optimizer


def build_own_scheduler(optimizer: Optimizer, config: OwnSchedulerConfig, total_steps: int) -> LRScheduler:
    """The learning rate: a linear warm-up, then a torch scheduler or a function's factors over the remaining steps.

    Raises: UserError: it cannot be built, or the function returns no factor.
    """
    warmup_steps = round(config.warmup_fraction * total_steps)
    remaining = max(1, total_steps - warmup_steps)
    target = find_part("scheduler", config)

    def rise(step: int) -> float:
        return (step + 1) / (warmup_steps + 1)

    if not (isinstance(target, type) or takes(target, "optimizer")):
        factor = _factor_function(config, target, remaining)
        return LambdaLR(
            optimizer, lambda step: rise(step) if step < warmup_steps else factor(min(step - warmup_steps, remaining))
        )
    facts = {"total_steps": remaining, "num_training_steps": remaining, "T_max": remaining}
    # Before the own one, since each scheduler begins with the rates that it finds.
    warmup = LambdaLR(optimizer, rise) if warmup_steps else None
    scheduler = build_part("scheduler", config, LRScheduler, facts, optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise UserError(f"scheduler.{TARGET}={config.target}: follows a metric; a schedule here follows the step")
    return scheduler if warmup is None else SequentialLR(optimizer, [warmup, scheduler], [warmup_steps])


def _factor_function(config: OwnSchedulerConfig, function: Callable[..., Any], steps: int) -> Callable[[int], float]:
    """A function of the step, its other arguments filled in and its first value checked."""
    known = {"total_steps": steps} if takes(function, "total_steps") else {}
    word = f"scheduler.{TARGET}={config.target}"

    def factor(step: int) -> float:
        return function(step, **{**known, **config.arguments})

    try:
        first = factor(0)
    except Exception as error:
        raise UserError(f"{word}: fails at step 0: {type(error).__name__}: {first_line(error)}") from error
    if isinstance(first, bool) or not isinstance(first, (int, float)) or not math.isfinite(first) or first < 0:
        raise UserError(f"{word}: gives {first!r} at step 0; a factor of optimizer.lr, 0 or more, is needed")
    return factor
