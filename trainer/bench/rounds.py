"""Interleaved rounds: every side is measured once a round, so that what changes on the machine meets all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

FEWEST_ROUNDS = 7
AGAIN = " again"


@dataclass(frozen=True)
class Sample:
    """One measurement.

    time_s: seconds of one unit of work, such as a step. computed: numbers that show what was computed, which have to be
    the same on all sides. details: seconds of each part of the unit, where they are known. figures: what else was
    measured, by name with unit.
    """

    time_s: float
    computed: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


Samples = Mapping[str, Sequence[Sample]]


def run_rounds(
    sides: Mapping[str, Callable[[], Sample]], rounds: int, report: Callable[[int, str, Sample], None]
) -> Samples:
    """Measure all sides in turns, in the other order every second round.

    The first side is measured twice a round: its two samples differ only by noise. The second is named "<side> again".

    Args: report: called after each measurement with the number of the round, from 1.
    """
    first = next(iter(sides))
    contest = {**sides, first + AGAIN: sides[first]}
    samples: dict[str, list[Sample]] = {name: [] for name in contest}
    for number in range(1, rounds + 1):
        names = list(contest)
        for name in names if number % 2 else reversed(names):
            sample = contest[name]()
            samples[name].append(sample)
            report(number, name, sample)
    return samples


def largest_difference(samples: Samples, names: Sequence[str]) -> float:
    """Largest relative difference of any computed number from the first side's first sample; 0.0 without numbers."""
    reference = samples[names[0]][0].computed
    return difference(reference, [sample for name in names for sample in samples[name]]) or 0.0


def difference(reference: Mapping[str, float], samples: Sequence[Sample]) -> float | None:
    """Largest relative difference of a number that the samples computed from the reference's number of that name.

    Returns: infinity where one is not finite; None where they have no number in common.
    """
    found = [
        abs(sample.computed[key] - reference[key]) / max(abs(reference[key]), 1e-12)
        for sample in samples
        for key in reference.keys() & sample.computed.keys()
    ]
    if not found:
        return None
    return max(found) if all(map(math.isfinite, found)) else math.inf


def mean_parts(samples: Samples) -> dict[str, dict[str, float]]:
    """Mean seconds of a unit by part, for each side whose parts are known."""
    return {
        name: {part: fmean(sample.details[part] for sample in own) for part in own[0].details}
        for name, own in samples.items()
        if own[0].details and not name.endswith(AGAIN)
    }
