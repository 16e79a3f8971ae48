"""Latency and throughput of a trained network, run in several ways at several batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from trainer.bench.compare import JSON_FILE, PLOT_FILE, TABLE_FILE
from trainer.bench.speedup import Interval, shown
from trainer.errors import UserError
from trainer.run.files import write_json, write_text


@dataclass(frozen=True)
class Latency:
    """Of one way at one batch size, over the calls of all rounds.

    inputs_per_s: batch size over the median. speed_up: over the first way. metric: of the task on its evaluation data.
    size_mib: of the files. peak_mib: resident memory of a process that runs this way alone, at the largest batch size.
    """

    name: str
    batch_size: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    inputs_per_s: float
    speed_up: Interval
    metric: float | None
    size_mib: float
    peak_mib: float

    @classmethod
    def of(
        cls,
        name: str,
        size: int,
        times_s: Sequence[float],
        speed_up: Interval,
        metric: float | None,
        size_mib: float,
        peak_mib: float,
    ) -> Self:
        """Args: times_s: of every call."""
        p50, p95, p99 = (1000 * float(value) for value in np.quantile(times_s, [0.5, 0.95, 0.99]))
        return cls(name, size, p50, p95, p99, 1000 * size / p50, speed_up, metric, size_mib, peak_mib)


def table_of(rows: Sequence[Latency], metric: str | None) -> tuple[list[str], list[list[str]]]:
    """The table as text: (header, rows)."""
    header = ["batch", "side", "p50 ms", "p95 ms", "p99 ms", "inputs a s", "speed-up", metric or "metric"]
    header += ["file MiB", "peak MiB"]
    return header, [
        [
            str(row.batch_size),
            row.name,
            f"{row.p50_ms:.2f}",
            f"{row.p95_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.inputs_per_s:.0f}",
            shown(row.speed_up),
            "not measured" if row.metric is None else f"{row.metric:.4f}",
            f"{row.size_mib:.1f}",
            f"{row.peak_mib:.0f}",
        ]
        for row in rows
    ]


def best_of(rows: Sequence[Latency]) -> list[str]:
    """The best way for latency and for throughput, as sentences."""
    smallest = min(row.batch_size for row in rows)
    quick = min((row for row in rows if row.batch_size == smallest), key=lambda row: row.p50_ms)
    much = max(rows, key=lambda row: row.inputs_per_s)
    return [
        f"lowest latency: {quick.name}, {quick.p50_ms:.2f} ms at batch {quick.batch_size}",
        f"highest throughput: {much.name}, {much.inputs_per_s:.0f} inputs a second at batch {much.batch_size}",
    ]


def print_latencies(rows: Sequence[Latency], metric: str | None, out: Path) -> None:
    """Print the table, the best ways, and where the files are."""
    console = Console()
    for size in dict.fromkeys(row.batch_size for row in rows):
        header, cells = table_of([row for row in rows if row.batch_size == size], metric and metric.partition("/")[2])
        # Intervals stand in the files, so that 80 columns suffice.
        table = Table(*header[1:], title=f"batch {size}", title_justify="left")
        for row in cells:
            table.add_row(*(cell.partition(" (")[0] for cell in row[1:]))
        console.print(table, highlight=False)
    for line in best_of(rows):
        print(line)
    for file in (TABLE_FILE, PLOT_FILE, JSON_FILE):
        print(f"  {out / file}")


def write_latencies(rows: Sequence[Latency], metric: str | None, facts: Mapping[str, Any], out: Path) -> None:
    """Write result.md, result.png and result.json. Raises: UserError: they cannot be written."""
    header, cells = table_of(rows, metric)
    lines = [
        "# Inference",
        "",
        f"    {facts['command']}",
        "",
        "Wall time of a forward pass; percentiles over all calls. Peak: resident memory of a process that runs one",
        "side alone, at the largest batch size.",
        "",
    ]
    lines += [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells)]
    lines += ["", *(f"- {line}" for line in best_of(rows)), *_facts(facts), ""]
    try:
        write_text(out / TABLE_FILE, "\n".join(lines))
        write_json(out / JSON_FILE, {"facts": dict(facts), "metric": metric, "rows": [asdict(row) for row in rows]})
        _draw(rows, out / PLOT_FILE)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from error


def _facts(facts: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    others = [f"- {name}: {value}" for name, value in facts.items() if name not in ("command", "versions")]
    return [*others, f"- versions: {versions}"]


def _draw(rows: Sequence[Latency], file: Path) -> None:
    """Percentiles at the smallest batch size, and throughput over latency for all."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    percentiles, throughput = figure.subplots(1, 2)
    smallest = min(row.batch_size for row in rows)
    alone = [row for row in rows if row.batch_size == smallest]
    places = range(len(alone))
    percentiles.hlines(places, [row.p50_ms for row in alone], [row.p99_ms for row in alone], color="#bbbbbb")
    for name, color in (("p50", "#4477aa"), ("p95", "#ccbb44"), ("p99", "#ee6677")):
        percentiles.plot([getattr(row, f"{name}_ms") for row in alone], places, "o", color=color, label=name)
    percentiles.set_yticks(places, [f"{row.name}, {row.speed_up.value:.2f}x" for row in alone])
    percentiles.invert_yaxis()
    percentiles.set_xlim(left=0)
    percentiles.set_xlabel(f"latency at batch {smallest}, ms; beside the name: speed-up over {alone[0].name}")
    for name in dict.fromkeys(row.name for row in rows):
        own = [row for row in rows if row.name == name]
        throughput.plot([row.p50_ms for row in own], [row.inputs_per_s for row in own], "o-", label=name)
        for row in own:
            place = (row.p50_ms, row.inputs_per_s)
            throughput.annotate(str(row.batch_size), place, textcoords="offset points", xytext=(4, 4), fontsize=7)
    throughput.set_xscale("log")
    throughput.set_yscale("log")
    throughput.set_xlabel("latency of a forward pass, ms (median); numbers: batch size")
    throughput.set_ylabel("inputs a second")
    for axes in (percentiles, throughput):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    figure.savefig(file, dpi=110)
