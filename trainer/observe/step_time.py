"""What is logged of a period of the clock: step times, shares of each state, and the ranks compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.clock import BETWEEN_STEPS, STATES, State, Times
from trainer.collectives import all_gather_json

# What a rank does on its own: not waiting for other ranks, and not logging, which is rank 0's work.
OWN_STATES: tuple[State, ...] = tuple(s for s in STATES if s not in {*BETWEEN_STEPS, "communication", "logging"})
# Slower than the median rank by this much, a rank is named.
LAG_MARGIN = 0.1
# A line for each rank up to this many; of more, only the slowest is logged.
MAX_RANKS_LOGGED = 64


@dataclass(frozen=True)
class RankTimes:
    """Nanoseconds of each rank in each state, in the order of ranks."""

    states: Sequence[Mapping[State, int]]

    @classmethod
    def gathered(cls, states: Mapping[State, int]) -> RankTimes:
        """Those of all ranks; called on all of them."""
        return cls(all_gather_json(dict(states)))

    def shares(self) -> dict[State, float]:
        """Of the time of all ranks, which adds up to 1."""
        total = sum(sum(rank.values()) for rank in self.states)
        return {state: sum(rank[state] for rank in self.states) / max(1, total) for state in STATES}

    def own_s(self) -> list[float]:
        """Seconds that each rank needs by itself, without waiting for others."""
        return [sum(rank[state] for state in OWN_STATES) / 1e9 for rank in self.states]

    def slowest(self) -> tuple[int, float]:
        """Returns: (the rank that needs most, by which fraction it needs more than the median rank)."""
        own = self.own_s()
        # Of two ranks the median is the faster one.
        median = statistics.median_low(own)
        rank = max(range(len(own)), key=own.__getitem__)
        return rank, own[rank] / median - 1.0 if median else 0.0


def step_metrics(times: Times, ranks: RankTimes) -> dict[str, float]:
    """The metrics of a period. Args: times: of this rank. ranks: of all."""
    steps = sorted(spent / 1e9 for spent in times.steps)
    metrics = {
        "perf/step_time_s": times.steps_s / len(steps),
        "perf/step_time_p50_s": _quantile(steps, 0.5),
        "perf/step_time_p95_s": _quantile(steps, 0.95),
        "perf/step_time_max_s": steps[-1],
    }
    metrics |= {f"perf/share_{state}": share for state, share in ranks.shares().items()}
    if len(times.networks) > 1:
        metrics |= {f"perf/step_time_{name}_s": spent / 1e9 / len(steps) for name, spent in times.networks.items()}
    own = ranks.own_s()
    if len(own) > 1:
        if len(own) <= MAX_RANKS_LOGGED:
            metrics |= {f"perf/step_time_s_rank_{rank}": spent / len(steps) for rank, spent in enumerate(own)}
        slowest, lag = ranks.slowest()
        metrics["perf/slowest_rank_lag"] = lag
        if lag >= LAG_MARGIN:
            metrics["perf/slowest_rank"] = float(slowest)
    return metrics


def state_of(times: Times) -> dict[str, Any]:
    """Times as plain values, for a checkpoint."""
    return {"states": dict(times.states), "networks": dict(times.networks), "steps": list(times.steps)}


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as this share of all."""
    return ordered[math.ceil(share * len(ordered)) - 1]
