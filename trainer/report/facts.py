"""What the tables of a page say: key figures, metrics, attempts, configurations side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from trainer.report.read import RunData, mapping_in

ABSENT = "–"  # noqa: RUF001
MAX_DIFFERENCES = 3  # of the configuration that a row of the table of runs names


@dataclass(frozen=True)
class Figure:
    """A key figure: name, value as shown, and a note below it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class MetricRow:
    """A metric at its end and at its best, as shown; best is empty where the metric chooses nothing."""

    name: str
    last: str
    smallest: str
    largest: str
    best: str


@dataclass(frozen=True)
class ConfigRow:
    """A configuration value of each run, as shown."""

    key: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs do not have the same value."""
        return len(set(self.values)) > 1


def number(value: float | None) -> str:
    """A figure of at most five digits, or with separators."""
    if value is None or not np.isfinite(value):
        return ABSENT if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds; the two largest that are not zero."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest_s:02d} s" if minutes else f"{rest_s} s"


def parsed_time(text: object) -> datetime | None:
    """A time of the record; None where there is none yet."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def shown_time(text: object) -> str:
    """To the second, in UTC."""
    time = parsed_time(text)
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if time else ABSENT


def best(run: RunData) -> tuple[float, int] | None:
    """The best value of the metric that chooses the weights, and its step; None where it was never logged."""
    name, larger = run.monitor
    series = run.series.get(name)
    if series is None or not np.isfinite(series.values).any():
        return None
    values = np.where(np.isfinite(series.values), series.values, -np.inf if larger else np.inf)
    at = int(values.argmax() if larger else values.argmin())
    return float(series.values[at]), int(series.steps[at])


def median(run: RunData, name: str) -> float | None:
    """The median of the finite values; None where there are none."""
    values = run.series[name].values if name in run.series else np.zeros(0)
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def train_loss(run: RunData) -> tuple[str, float] | None:
    """The first training loss, by name, and its last value: a GAN has several."""
    names = [name for name in run.series if name.startswith("train/") and "loss" in name]
    return (names[0], float(run.series[names[0]].values[-1])) if names else None


def elapsed_s(run: RunData) -> float:
    """Wall time of the attempts that have ended."""
    total = 0.0
    for attempt in run.attempts:
        start, end = parsed_time(attempt.get("start")), parsed_time(attempt.get("end"))
        if start and end:
            total += (end - start).total_seconds()
    return total


def num_parameters(run: RunData) -> int | None:
    """Parameters of all networks."""
    counts = mapping_in(mapping_in(run.record, "model"), "num_parameters").values()
    return sum(counts) if counts and all(isinstance(count, int) for count in counts) else None


def group_name(run: RunData, group: str) -> str:
    """Which member of a configuration group the run uses."""
    return str(mapping_in(run.config, group).get("name", ABSENT))


def recorded(run: RunData, part: str) -> dict[str, str]:
    """What the record says about the data or the model, as dotted keys."""
    return flat(mapping_in(run.record, part))


def key_figures(run: RunData) -> list[Figure]:
    """What a reader looks for first."""
    figures = []
    chosen, loss = best(run), train_loss(run)
    if chosen:
        figures.append(Figure(f"best {run.monitor[0]}", number(chosen[0]), f"at step {chosen[1]:,}"))
    if loss:
        figures.append(Figure(loss[0], number(loss[1]), f"at step {run.last_step:,}"))
    for unit in ("tokens", "samples"):
        rate = median(run, f"perf/{unit}_per_s")
        if rate is not None:
            step_s = median(run, "perf/step_time_s")
            note = f"median; {number(1000 * step_s)} ms a step" if step_s is not None else "median"
            figures.append(Figure(f"{unit}/s", number(rate), note))
            break
    mfu = median(run, "perf/mfu")
    if mfu is not None:
        figures.append(Figure("MFU", f"{mfu:.1%}", "median"))
    verdict = mapping_in(mapping_in(run.record, "time"), "verdict")
    share = verdict.get("share")
    if isinstance(share, float):
        bound, target = verdict.get("bound"), verdict.get("target")
        against = f" against {target}" if target not in (None, bound) else ""
        figures.append(Figure("bound by", f"{bound} {share:.0%}", f"try {verdict.get('advice')}{against}"))
    parameters = num_parameters(run)
    if parameters is not None:
        figures.append(Figure("parameters", f"{parameters:,}", group_name(run, "model")))
    attempts = len(run.attempts)
    if elapsed_s(run):
        note = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        figures.append(Figure("time", duration(elapsed_s(run)), note))
    return figures


def metric_rows(run: RunData) -> list[MetricRow]:
    """Every metric, evaluated ones first."""
    order = {"val": 0, "test": 1, "train": 2}
    names = sorted(run.series, key=lambda name: (order.get(name.partition("/")[0], 3), name))
    chosen = best(run)
    rows = []
    for name in names:
        values = run.series[name].values
        finite = values[np.isfinite(values)]
        smallest, largest = (number(float(f(finite))) if len(finite) else ABSENT for f in (np.min, np.max))
        mark = f"{number(chosen[0])} at step {chosen[1]:,}" if chosen and name == run.monitor[0] else ""
        rows.append(MetricRow(name, number(float(values[-1])), smallest, largest, mark))
    return rows


def attempt_rows(run: RunData) -> list[dict[str, str]]:
    """When each attempt started and ended, why, and on what."""
    rows = []
    for attempt in run.attempts:
        start, end = parsed_time(attempt.get("start")), parsed_time(attempt.get("end"))
        restarts = attempt.get("restarts")
        rows.append(
            {
                "start": shown_time(attempt.get("start")),
                "end": shown_time(attempt.get("end")),
                "time": duration((end - start).total_seconds()) if start and end else ABSENT,
                "cause": str(attempt.get("cause") or "no end recorded")
                + (f"; {restarts} restarts of its ranks" if restarts else ""),
                "ranks": str(attempt.get("world_size", ABSENT)),
                "host": str(attempt.get("host", ABSENT)),
                "command": _command(attempt.get("command")),
            }
        )
    return rows


def _command(words: object) -> str:
    """The command line as it is typed: the first word is the path of a file of this project."""
    return " ".join(["python -m trainer", *map(str, words[1:])]) if isinstance(words, list) else ABSENT


def environment_rows(run: RunData) -> list[tuple[str, str]]:
    """Hardware, code and versions of the last attempt."""
    if not run.attempts:
        return []
    attempt = run.attempts[-1]
    hardware, git = mapping_in(attempt, "hardware"), mapping_in(attempt, "git")
    rows = [
        ("processor", f"{hardware.get('cpu', ABSENT)}, {hardware.get('num_cores', ABSENT)} cores"),
        ("GPUs", ", ".join(map(str, hardware.get("gpus") or [])) or "none"),
        ("ranks", f"{attempt.get('world_size', ABSENT)}, launcher {attempt.get('launcher', ABSENT)}"),
    ]
    if git:
        rows.append(("commit", str(git.get("sha")) + (", with uncommitted changes" if git.get("diff") else "")))
    return rows + [(name, str(version or "not installed")) for name, version in mapping_in(attempt, "versions").items()]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys, values as JSON without the quotes of a string."""
    rows: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return rows


def config_rows(runs: Sequence[RunData]) -> list[ConfigRow]:
    """All configuration values, those in which the runs differ first; else in the order of the file."""
    flats = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flats for key in values)
    rows = [ConfigRow(key, tuple(values.get(key, ABSENT) for values in flats)) for key in keys]
    return sorted(rows, key=lambda row: not row.differs)


def what_differs(rows: Sequence[ConfigRow], run: int) -> str:
    """The first values in which one of the runs differs from the others, as they are typed."""
    values = [f"{row.key}={row.values[run]}" for row in rows if row.differs]
    rest = len(values) - MAX_DIFFERENCES
    return ", ".join(values[:MAX_DIFFERENCES]) + (f" and {rest} more" if rest > 0 else "")


def notes(run: RunData) -> list[str]:
    """What a reader has to know about the files themselves."""
    found = []
    if run.has_torn_line:
        found.append("the last line of metrics.jsonl is incomplete and left out")
    for name, series in run.series.items():
        count = int((~np.isfinite(series.values)).sum())
        if count:
            found.append(f"{name} is not finite at {count:,} of {len(series.values):,} points")
    return found
