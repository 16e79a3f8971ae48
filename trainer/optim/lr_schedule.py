"""The learning rate over a run, as a fraction of the optimizer's own. Importable without torch, for the verb plan."""

from __future__ import annotations

import math

from trainer.config.groups import DecayConfig
from trainer.config.schema import SchedulerConfig

# The defaults of torch's OneCycleLR: it starts at a 25th of the peak and ends at a 10,000th of that.
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 10_000


def lr_factor(config: SchedulerConfig, step: int, total_steps: int) -> float:
    """The factor at a step, counted from 0; from `total_steps` on it stays at its final value."""
    if config.name == "one_cycle":
        return _one_cycle(config.warmup_fraction, step, total_steps)
    final = config.final_fraction if isinstance(config, DecayConfig) else 1.0
    warmup_steps = round(config.warmup_fraction * total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    decay = {"linear": 1.0 - done, "cosine": _cosine(1.0, 0.0, done)}.get(config.name, 1.0)
    return final + (1.0 - final) * decay


def _one_cycle(warmup_fraction: float, step: int, total_steps: int) -> float:
    """The 1cycle policy (Smith and Topin 2018) with cosines.

    The values are those of torch's OneCycleLR, which divides by zero where the warm-up is one step. Momentum is not
    cycled, so that the schedule means the same for every optimizer.
    """
    # The peak is at this step, which need not be an integer. A warm-up of one step or less starts at the peak.
    peak_step = max(0.0, warmup_fraction * total_steps - 1)
    if step < peak_step:
        return _cosine(ONE_CYCLE_START, 1.0, step / peak_step)
    decay_steps = total_steps - 1 - peak_step
    return _cosine(1.0, ONE_CYCLE_END, min(1.0, (step - peak_step) / decay_steps) if decay_steps else 0.0)


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))
