"""What bounds a run, and which setting to try next."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.clock import State
from trainer.config.schema import Config
from trainer.config.strategies import DDPConfig, FSDP2Config, ZeroConfig
from trainer.observe.step_time import LAG_MARGIN, OWN_STATES, RankTimes

Part = Literal[
    "data", "copy", "compute", "optimizer", "communication", "slow rank", "evaluation", "checkpoints", "logging", "host"
]
PART_OF: Mapping[State, Part] = {
    "data_wait": "data",
    "host_to_device": "copy",
    "forward": "compute",
    "backward": "compute",
    "optimizer": "optimizer",
    "communication": "communication",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "logging": "logging",
    "other": "host",
}
# A part smaller than this is left alone: without it the run would be 1.1 times as fast.
WORTHWHILE = 0.1


@dataclass(frozen=True)
class Verdict:
    """bound: the largest part, `share` of the run. target: the part against which `advice` is a setting to try, and
    target_share its share. gain: how many times as fast the run could be at most, None where that is not known. rank:
    the one that the others wait for.
    """

    bound: Part
    share: float
    target: Part
    target_share: float
    advice: str
    gain: float | None
    rank: int | None = None

    def lines(self) -> list[str]:
        """Two lines for the terminal, each at most 80 characters."""
        name = f"{self.bound} {self.rank}" if self.bound == "slow rank" else self.bound
        limit, against = f"without {self.target} ({self.target_share:.0%})", f" against {self.target}"
        if self.target == self.bound:
            limit, against = "at the speed of matrix products" if self.target == "compute" else "without it", ""
        gain = "" if self.gain is None else f"; {limit} at most {self.gain:.2g}x as fast"
        return [f"bound by {name} ({self.share:.0%}){gain}", f"try {self.advice}{against}"]


def parts_of(ranks: RankTimes) -> dict[Part, float]:
    """Share of each part in the time of the run, which add up to 1.

    Ranks wait for each other, so the run takes as long as its slowest rank. What that needs more than the median rank
    is a part of its own; what all ranks wait for a collective is the least that any of them waits.
    """
    spent: dict[Part, float] = dict.fromkeys(PART_OF.values(), 0.0)
    for state, part in PART_OF.items():
        times = [rank[state] / 1e9 for rank in ranks.states]
        if state in OWN_STATES:
            spent[part] += statistics.median_low(times)
        else:
            spent[part] += min(times) if state == "communication" else max(times)
    own = ranks.own_s()
    _, lag = ranks.slowest()
    spent["slow rank"] = max(own) - statistics.median_low(own) if lag >= LAG_MARGIN else 0.0
    total = sum(spent.values())
    return {part: seconds / total if total else 0.0 for part, seconds in spent.items()}


def judge(ranks: RankTimes, config: Config, accelerator: str, efficiency: float | None) -> Verdict:
    """The verdict on a run.

    Args: efficiency: FLOP/s while computing, as a share of those of a matrix product; None where it is not known.
    """
    parts = parts_of(ranks)
    bound: Part = max(parts, key=lambda part: parts[part])
    target: Part = max((part for part in parts if part != "compute"), key=lambda part: parts[part])
    if parts[target] < WORTHWHILE:
        target = "compute"
    rest = 1.0 - parts[target]
    if target == "compute":
        # Faster than a matrix product it cannot be.
        gain = None if efficiency is None else 1.0 / (rest + parts[target] * min(1.0, efficiency))
    else:
        gain = 1.0 / rest if rest else None
    rank, _ = ranks.slowest()
    advice = advise(target, config, accelerator)
    return Verdict(bound, parts[bound], target, parts[target], advice, gain, rank if parts["slow rank"] else None)


def advise(part: Part, config: Config, accelerator: str) -> str:
    """The setting to try against a part: one that the run does not use yet."""
    trainer, performance = config.trainer, config.performance
    if part == "slow rank":
        return "python -m trainer doctor on its node"
    if part == "data":
        return f"performance.prefetch_batches={max(2, 2 * performance.prefetch_batches)}"
    if part == "copy" and not performance.data_on_device:
        return "performance.data_on_device=true"
    if part == "optimizer" and getattr(config.optimizer, "fused", True) is False:
        return "optimizer.fused=true"
    if part == "communication":
        return _against_communication(config)
    if part == "evaluation":
        if trainer.check_val_every_n_epoch is not None:
            return f"trainer.check_val_every_n_epoch={4 * trainer.check_val_every_n_epoch}"
        return f"trainer.val_check_interval={4 * trainer.val_check_interval}"
    if part == "checkpoints":
        every = config.checkpoint.every_n_steps
        return "checkpoint.at_evaluation=false" if every is None else f"checkpoint.every_n_steps={4 * every}"
    if part == "logging":
        return f"trainer.log_every_n_steps={4 * trainer.log_every_n_steps}"
    if accelerator == "cuda" and trainer.precision == "32-true" and part == "compute":
        return "trainer.precision=bf16-mixed"
    if not performance.compile and part in ("compute", "host"):
        return "performance.compile=true"
    return "trainer.devices, more of them" if part == "compute" else "batch.global_size, a larger one"


def _against_communication(config: Config) -> str:
    strategy = config.strategy
    if isinstance(strategy, FSDP2Config) and strategy.reshard_after_forward:
        return "strategy.reshard_after_forward=false"
    if isinstance(strategy, ZeroConfig) and not strategy.overlap_comm:
        return "strategy.overlap_comm=true"
    if isinstance(strategy, DDPConfig) and strategy.gradient_compression != "none":
        return "batch.global_size, a larger one"
    if isinstance(strategy, (FSDP2Config, ZeroConfig)):
        return "strategy=ddp"
    return "strategy=ddp strategy.gradient_compression=bf16"
