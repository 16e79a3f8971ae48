"""The learning rate over a run, as a share of the optimizer's own. Torch-free, so that `plan` can draw it."""

from __future__ import annotations

import math

from trainer.config.groups import DecayConfig
from trainer.config.schema import SchedulerConfig

# torch's OneCycleLR starts at a 25th of the peak and ends at a 10,000th of that.
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 10_000


def lr_factor(config: SchedulerConfig, step: int, total_steps: int) -> float:
    """The factor of step `step`, counted from 0, of `total_steps`."""
    if config.name == "one_cycle":
        return _one_cycle(config.warmup_fraction, step, total_steps)
    final = config.final_fraction if isinstance(config, DecayConfig) else 1.0
    warmup_steps = round(config.warmup_fraction * total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    fall = {"linear": 1.0 - done, "cosine": _cosine(1.0, 0.0, done)}.get(config.name, 1.0)
    return final + (1.0 - final) * fall


def _one_cycle(warmup_fraction: float, step: int, total_steps: int) -> float:
    """The 1cycle policy (Smith and Topin 2018) with cosines, as torch's OneCycleLR has it."""
    rise_end = warmup_fraction * total_steps - 1
    if step <= rise_end:
        return _cosine(ONE_CYCLE_START, 1.0, step / rise_end)
    return _cosine(1.0, ONE_CYCLE_END, (step - rise_end) / (total_steps - 1 - rise_end))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))
