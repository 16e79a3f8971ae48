"""The result of a load test: a table, a plot, JSON and a page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trainer.bench.compare import JSON_FILE, PLOT_FILE, TABLE_FILE
from trainer.bench.load import RULE, Offered
from trainer.bench.saturation import Saturation
from trainer.errors import UserError
from trainer.run.files import write_json, write_text

PAGE_FILE = "index.html"
HEADER = ["offered a s", "answers a s", "sent", "200", "429", "errors", "p50 ms", "p95 ms", "p99 ms", "sustained"]
MOST_CLIENT_SHARE = 0.8  # of a core; a client that is busier may be what saturates


def rows_of(result: Saturation) -> list[list[str]]:
    """The cells of HEADER for each rate, from the lowest."""
    return [_cells(row) for row in sorted(result.rows, key=lambda row: row.rate_per_s)]


def findings(result: Saturation) -> list[str]:
    """The saturation point, latency at half of it, and what the client took, as sentences."""
    highest, lowest, half = result.highest, result.lowest, result.at_half
    if highest is None or half is None:
        return ["saturation: below every rate that was measured", *_failures(result)]
    above = "every measured rate was sustained" if lowest is None else f"{lowest.rate_per_s:.4g} were not sustained"
    lines = [
        f"saturation: {highest.rate_per_s:.4g} requests a second; {above}",
        f"at 50 % of saturation, {half.rate_per_s:.4g} requests a second: p50 {half.p50_ms:.1f} ms, "
        f"p95 {half.p95_ms:.1f} ms, p99 {half.p99_ms:.1f} ms",
        f"client at saturation: {highest.client_share:.0%} of a core, 99 % of the requests sent within "
        f"{highest.late_ms:.1f} ms of their time",
    ]
    if highest.client_share > MOST_CLIENT_SHARE:
        lines.append("the client may have been what saturated: run it on another machine")
    return [*lines, *_failures(result)]


def print_load(result: Saturation, out: Path) -> None:
    """Print the table, what was found, and where the files are."""
    table = Table(*HEADER, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # so that 80 columns suffice
    for cells in rows_of(result):
        table.add_row(*cells)
    Console().print(table, highlight=False)
    for line in findings(result):
        print(line)
    for file in (PAGE_FILE, TABLE_FILE, PLOT_FILE, JSON_FILE):
        print(f"  {out / file}")


def write_load(result: Saturation, facts: Mapping[str, Any], out: Path) -> None:
    """Write the files. Raises: UserError: they cannot be written."""
    rows, lines = rows_of(result), findings(result)
    text = ["# Load test", "", f"    {facts['command']}", ""]
    text += [f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *rows)]
    text += ["", *(f"- {line}" for line in lines), "", f"Rule: {RULE}.", ""]
    text += [f"- {name}: {value}" for name, value in facts.items() if name != "command"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / TABLE_FILE, "\n".join([*text, ""]))
        write_json(out / JSON_FILE, {"facts": dict(facts), "rule": RULE, **asdict(result)})
        _draw(result, out / PLOT_FILE)
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).with_name("assets")), undefined=StrictUndefined, autoescape=True
        )
        picture = base64.b64encode((out / PLOT_FILE).read_bytes()).decode()
        page = environment.get_template("load.html").render(
            facts=facts, header=HEADER, rows=rows, findings=lines, rule=RULE, picture=picture
        )
        write_text(out / PAGE_FILE, page)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from error


def _cells(row: Offered) -> list[str]:
    latencies = [f"{value:.1f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)]
    counts = [str(count) for count in (row.sent, row.answered, row.refused, row.failed)]
    rates = [f"{row.rate_per_s:.4g}", f"{row.answers_per_s:.4g}"]
    return [*rates, *counts, *latencies, "yes" if row.is_sustained else "no"]


def _failures(result: Saturation) -> list[str]:
    reasons = sorted({reason for row in result.rows for reason in row.failures})
    totals = {reason: sum(row.failures.get(reason, 0) for row in result.rows) for reason in reasons}
    return [f"errors: {count} times {reason}" for reason, count in totals.items()]


def _draw(result: Saturation, file: Path) -> None:
    """Latency over the rate of answers, and answers over what was offered."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    rows = sorted(result.rows, key=lambda row: row.rate_per_s)
    offered, answers = [row.rate_per_s for row in rows], [row.answers_per_s for row in rows]
    for name, color in (("p50_ms", "#4477aa"), ("p95_ms", "#ccbb44"), ("p99_ms", "#ee6677")):
        latency.plot(answers, [getattr(row, name) for row in rows], "o-", color=color, label=name.removesuffix("_ms"))
    latency.set_yscale("log")
    latency.set_xlabel("answers a second")
    latency.set_ylabel("latency from the intended time, ms")
    throughput.plot(offered, answers, "o-", color="#4477aa", label="answers")
    throughput.plot(offered, offered, color="black", linewidth=0.8, label="as many as offered")
    if any(row.refused for row in rows):
        share = [row.rate_per_s * row.refused / row.sent for row in rows]
        throughput.plot(offered, share, "o--", color="#ee6677", label="refused with 429")
    throughput.set_xlabel("requests offered a second")
    throughput.set_ylabel("a second")
    for axes, at in ((latency, "answers_per_s"), (throughput, "rate_per_s")):
        if result.highest is not None:
            axes.axvline(getattr(result.highest, at), color="#aa3377", linestyle="--", label="saturation")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    figure.savefig(file, dpi=110)
