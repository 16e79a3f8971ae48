"""Which charts a page has and what is in them: numbers only, drawn by figures.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.report.decimation import MAX_POINTS, average, decimate
from trainer.report.metrics_reader import Series
from trainer.report.read import RunData

SETS = ("train", "val", "test")
SHARE_PREFIX = "perf/share_"
# perf/step_time_s_rank_3 and sys/memory_gib/rank_3 are one chart each, with a line for every rank.
OF_A_RANK = re.compile(r"^(?P<base>.+?)[_/]rank[_/]?(?P<rank>\d+)$")
STATISTICS = re.compile(r"^(?P<base>.+?)_(?P<statistic>p\d+|min|max|mean|median)(?P<unit>_s|_ms)?$")
# More runs than this are compared by their mean shares only: a stacked area takes a chart for each run.
MAX_SHARE_CHARTS = 4

Section = Literal["Losses and metrics", "Optimization", "Speed", "Memory and system", "Other"]
SECTIONS: tuple[Section, ...] = ("Losses and metrics", "Optimization", "Speed", "Memory and system", "Other")


@dataclass(frozen=True)
class Line:
    """One line of a chart. part: its name among the lines of its run. run: its position on the page."""

    run: int
    part: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Chart:
    """title: the metric that its lines have in common. parts: all parts in it, in order.

    stacked: the lines share their steps and are drawn as areas on top of each other.
    """

    section: Section
    title: str
    parts: tuple[str, ...]
    lines: tuple[Line, ...]
    stacked: bool = False


def build_charts(runs: Sequence[RunData], max_points: int = MAX_POINTS) -> list[Chart]:
    """The charts of one run, or of several in the same axes, in the order of the page."""
    grouped: dict[tuple[Section, str], list[Line]] = {}
    for number, run in enumerate(runs):
        for name, series in run.series.items():
            if name.startswith(SHARE_PREFIX):
                continue
            section, title, part = placed(name)
            kept = decimate(series.values, max_points)
            line = Line(number, part, series.steps[kept], series.values[kept])
            grouped.setdefault((section, title), []).append(line)
    charts = [Chart(section, title, _ordered_parts(lines), tuple(lines)) for (section, title), lines in grouped.items()]
    charts += _share_charts(runs, max_points)
    return sorted(charts, key=lambda chart: (SECTIONS.index(chart.section), rank_in_section(chart.title), chart.title))


def placed(name: str) -> tuple[Section, str, str]:
    """Where a metric is shown. Returns: (section, title of its chart, part)."""
    group, _, metric = name.partition("/")
    if group in SETS:
        return "Losses and metrics", metric, group
    of_a_rank = OF_A_RANK.match(name)
    if of_a_rank:
        return _section(name), f"{of_a_rank['base']} by rank", f"rank {of_a_rank['rank']}"
    if group == "optim":
        base = next((b for b in ("lr", "grad_norm") if metric == b or metric.startswith(f"{b}_")), metric)
        return "Optimization", f"optim/{base}", metric.removeprefix(base).lstrip("_")
    statistic = STATISTICS.match(name)
    if statistic:
        return _section(name), statistic["base"] + (statistic["unit"] or ""), statistic["statistic"]
    return _section(name), name, ""


def _section(name: str) -> Section:
    if "memory" in name or name.startswith("sys/"):
        return "Memory and system"
    return "Speed" if name.startswith("perf/") else "Other"


def rank_in_section(title: str) -> int:
    """Losses before metrics, accuracy before other metrics, throughput before what explains it."""
    order = ("loss", "accuracy", "optim/lr", "perf/samples_per_s", "perf/tokens_per_s", "perf/step_time")
    return next((number for number, word in enumerate(order) if title.startswith(word)), len(order))


def _ordered_parts(lines: Sequence[Line]) -> tuple[str, ...]:
    parts = dict.fromkeys(line.part for line in lines)
    known = [part for part in SETS if part in parts]
    others = sorted((part for part in parts if part not in SETS), key=_natural)
    return (*known, *others)


def _natural(text: str) -> list[tuple[int, str]]:
    """rank 2 before rank 10."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", text)]


def share_names(runs: Sequence[RunData]) -> list[str]:
    """The states that time is divided into, without their prefix, in the order of the files."""
    names = dict.fromkeys(name for run in runs for name in run.series if name.startswith(SHARE_PREFIX))
    return [name.removeprefix(SHARE_PREFIX) for name in names]


def mean_shares(run: RunData) -> dict[str, float]:
    """Mean of each share over what was logged; empty where the run has none."""
    steps, rows, names = _share_rows(run)
    return dict(zip(names, rows.mean(axis=0).tolist(), strict=True)) if len(steps) else {}


def _share_charts(runs: Sequence[RunData], max_points: int) -> Iterator[Chart]:
    with_shares = [number for number, run in enumerate(runs) if share_names([run])]
    if len(with_shares) > MAX_SHARE_CHARTS:
        return
    for number in with_shares:
        steps, rows, names = _share_rows(runs[number])
        # Both averaged over the same neighbours.
        kept_steps = average(steps[:, None].astype(np.float64), max_points)[:, 0].round().astype(np.int64)
        columns = average(rows, max_points).T
        lines = tuple(Line(number, name, kept_steps, column) for name, column in zip(names, columns, strict=True))
        title = "time by state" if len(runs) == 1 else f"time by state, {runs[number].label}"
        yield Chart("Speed", title, tuple(names), lines, stacked=True)


def _share_rows(run: RunData) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns: (steps (N,), shares (N, C), names); a share that a step does not have is 0."""
    names = share_names([run])
    series: Mapping[str, Series] = {name: run.series[SHARE_PREFIX + name] for name in names}
    steps = np.unique(np.concatenate([s.steps for s in series.values()])) if names else np.zeros(0, dtype=np.int64)
    rows = np.zeros((len(steps), len(names)))
    for column, one in enumerate(series.values()):
        rows[np.searchsorted(steps, one.steps), column] = one.values
    return steps, np.nan_to_num(rows), names
