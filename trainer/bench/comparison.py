"""The result of a benchmark that compares ways of doing the same work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

import numpy as np

from trainer.bench.rounds import AGAIN, Samples, difference, mean_parts
from trainer.bench.speedup import Interval, ratio, shown
from trainer.errors import UserError


@dataclass(frozen=True)
class Question:
    """What a benchmark compares.

    name: of the benchmark. what: is compared, in one line. unit: of work, such as "step". clock: what a time is, such
    as "wall time". checked: how the sides are shown to do the same work. tolerance: the largest relative difference of
    computed numbers that rounding explains; None where the sides compute nothing that can be compared.
    """

    name: str
    what: str
    unit: str
    clock: str
    checked: str
    tolerance: float | None = None


@dataclass(frozen=True)
class Side:
    """One way of doing the work.

    time_s: median of a unit of work. quartiles_s: of its times. relative_time: to the first side. difference: largest
    relative difference of a computed number from the first side's; None where nothing was compared. figures: medians
    of further measured numbers, by name with unit.
    """

    name: str
    time_s: float
    quartiles_s: tuple[float, float]
    relative_time: Interval
    difference: float | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Several sides, each measured once in every round; the first one twice, whose ratio to itself is the noise."""

    question: Question
    facts: Mapping[str, Any]
    sides: Sequence[Side]
    noise: Interval
    notes: Sequence[str]
    samples: Samples

    @classmethod
    def of(cls, question: Question, samples: Samples, facts: Mapping[str, Any], notes: Sequence[str] = ()) -> Self:
        """Compute ratios, differences and notes.

        Args: samples: of `run_rounds`. Raises: UserError: a side was not measured in every round.
        """
        first = next(iter(samples), "")
        names = [name for name in samples if not name.endswith(AGAIN)]
        missing = [name for name, own in samples.items() if not own or len(own) != len(samples[first])]
        if len(names) < 2 or missing or first + AGAIN not in samples:
            what = ", ".join(missing) or "the other one"
            raise UserError(f"bench {question.name}: a ratio needs both sides in every round; not measured: {what}")
        times = {name: [sample.time_s for sample in own] for name, own in samples.items()}
        sides = [_side(name, first, samples, times) for name in names]
        noise = ratio(times[first + AGAIN], times[first])
        return cls(question, facts, sides, noise, [*notes, *_differing(question, sides)], samples)

    @property
    def title(self) -> str:
        """What was measured."""
        return f"{self.question.name}: {self.question.what}"

    def parts(self) -> dict[str, dict[str, float]]:
        """Mean seconds of a unit by part, for each side whose parts are known."""
        return mean_parts(self.samples)


def _side(name: str, first: str, samples: Samples, times: Mapping[str, Sequence[float]]) -> Side:
    low, high = np.quantile(times[name], [0.25, 0.75])
    own = samples[name]
    figures = {key: median(sample.figures[key] for sample in own) for key in own[0].figures}
    # The first side is compared with its own repetition.
    compared = [*own, *samples[first + AGAIN]] if name == first else own
    return Side(
        name,
        median(times[name]),
        (float(low), float(high)),
        ratio(times[name], times[first]),
        difference(samples[first][0].computed, compared),
        figures,
    )


def _differing(question: Question, sides: Sequence[Side]) -> list[str]:
    """Notes on sides that did not compute what the first one did."""
    if question.tolerance is None:
        return []
    notes = []
    for side in sides:
        if side.difference is None:
            notes.append(f"{side.name}: no computed number could be compared with {sides[0].name}")
        elif side.difference > question.tolerance:
            notes.append(
                f"{side.name}: a computed number differs from that of {sides[0].name} by {side.difference:.1e}, more "
                f"than {question.tolerance:.0e}: the ratio may compare different work"
            )
    return notes


def table_of(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The table as text: (header, a row for each side)."""
    question, first = comparison.question, comparison.sides[0]
    figures = list(dict.fromkeys(key for side in comparison.sides for key in side.figures))
    header = ["side", f"ms a {question.unit}", "quartiles", f"time over {first.name}"]
    header += ["largest difference"] if question.tolerance is not None else []
    rows = []
    for side in comparison.sides:
        low, high = side.quartiles_s
        row = [side.name, f"{1000 * side.time_s:.3f}", f"{1000 * low:.3f} to {1000 * high:.3f}"]
        row.append("1" if side is first else shown(side.relative_time, 3))
        if question.tolerance is not None:
            row.append("not compared" if side.difference is None else f"{side.difference:.1e}")
        row += [f"{side.figures[key]:.4g}" if key in side.figures else "" for key in figures]
        rows.append(row)
    return [*header, *figures], rows


def markdown(comparison: Comparison) -> str:
    """The result as a page: command, table, noise, notes, machine and versions."""
    question, facts = comparison.question, comparison.facts
    header, rows = table_of(comparison)
    rounds = len(comparison.samples[comparison.sides[0].name])
    lines = [f"# {comparison.title}", "", f"    {facts['command']}", ""]
    lines += [
        f"{rounds} interleaved rounds, in the other order every second round. Times: medians, {question.clock}.",
        "Intervals: 95 %, by bootstrap over rounds.",
        f"Checked: {question.checked}.",
        "",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    lines += ["", f"Noise: {comparison.sides[0].name} against itself {shown(comparison.noise, 3)}."]
    lines += [f"Note: {note}." for note in comparison.notes]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    others = {name: value for name, value in facts.items() if name not in ("command", "versions")}
    lines += ["", *(f"- {name}: {value}" for name, value in others.items()), f"- versions: {versions}", ""]
    return "\n".join(lines)
