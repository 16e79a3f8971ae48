"""Interleaved rounds: every side is measured once a round, so that what changes on the machine meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

FEWEST_ROUNDS = 7
AGAIN = " again"


@dataclass(frozen=True)
class Sample:
    """One measurement.

    time_s: seconds of one unit of work, such as a step. computed: numbers that show what was computed, which have to be
    the same on all sides. details: seconds of each part of the unit, where they are known.
    """

    time_s: float
    computed: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)


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
    differences = [0.0]
    for sample in (sample for name in names for sample in samples[name]):
        for key in reference.keys() & sample.computed.keys():
            scale = max(abs(reference[key]), 1e-12)
            differences.append(abs(sample.computed[key] - reference[key]) / scale)
    return max(differences)
