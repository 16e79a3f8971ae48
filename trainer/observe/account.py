"""Where the time of a run went: for the terminal, and for run.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainer.clock import State, StepClock
from trainer.config.schema import Config
from trainer.observe.step_time import RankTimes
from trainer.observe.verdict import Verdict, judge

SMALLEST_SHOWN = 0.005


@dataclass(frozen=True)
class Account:
    """Of this attempt. startup_s: until training began. training_s: from then on, with evaluations and checkpoints.

    shares: of training_s over all ranks, which add up to 1.
    """

    startup_s: float
    training_s: float
    shares: dict[State, float]
    verdict: Verdict

    def lines(self) -> list[str]:
        """A few lines for the terminal, each at most 80 characters."""
        shown = sorted(self.shares.items(), key=lambda entry: -entry[1])
        words = [f"{state} {share:.0%}" for state, share in shown if share >= SMALLEST_SHOWN]
        lines = [f"{self.training_s:.1f} s of training, {self.startup_s:.1f} s before it:"]
        for word in words:
            if lines[-1].endswith(":") or len(lines[-1]) + len(word) > 76:
                lines.append(f"  {word}")
            else:
                lines[-1] += f", {word}"
        return [*lines, *self.verdict.lines()]

    def as_record(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)


def close_account(clock: StepClock, config: Config, accelerator: str, efficiency: float | None) -> Account:
    """Add up what the clock of each rank has counted; called on all ranks. Args: efficiency: see `judge`."""
    clock.take()
    ranks = RankTimes.gathered(clock.run)
    training_s = sum(clock.run.values()) / 1e9
    verdict = judge(ranks, config, accelerator, efficiency)
    return Account(clock.startup_ns / 1e9, training_s, ranks.shares(), verdict)
