"""Measure a comparison in interleaved rounds, print it and write its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.bench.comparison import Comparison, Question, markdown, table_of
from trainer.bench.plot import draw_comparison
from trainer.bench.rounds import Sample, run_rounds
from trainer.bench.speedup import shown
from trainer.errors import UserError
from trainer.run.files import write_json, write_text
from trainer.run.provenance import cpu_name, gpu_names, package_versions

QUARTILES_COLUMN = 2
JSON_FILE, TABLE_FILE, PLOT_FILE = "result.json", "result.md", "result.png"


def compare(
    question: Question,
    sides: Mapping[str, Callable[[], Sample]],
    rounds: int,
    command: str,
    notes: Sequence[str] = (),
) -> Comparison:
    """Measure all sides in each round, and print every sample. Raises: UserError: there are fewer than two sides."""
    if len(sides) < 2:
        raise UserError(f"bench {question.name}: a ratio needs two sides, and only {', '.join(sides)} is named")
    facts = surroundings(command)
    samples = run_rounds(sides, rounds, partial(print_sample, Console(), rounds))
    return Comparison.of(question, samples, {**facts, "load average after": round(os.getloadavg()[0], 2)}, notes)


def surroundings(command: str) -> dict[str, Any]:
    """What a reader has to know of a measurement that is about to begin."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": ", ".join([cpu_name(), f"{os.cpu_count()} cores", *(gpu_names() or ["no GPU"])]),
        "load average before": round(os.getloadavg()[0], 2),
        "versions": {name: version for name, version in package_versions().items() if version},
    }


def print_sample(console: Console, rounds: int, number: int, name: str, sample: Sample) -> None:
    """A line for each measurement."""
    line = f"round {number}/{rounds}  {name:<32} {1000 * sample.time_s:10.3f} ms"
    console.print(line, highlight=False, markup=False)


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write every sample as JSON, the table as Markdown, and a plot. Raises: UserError: they cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / JSON_FILE, asdict(comparison))
        write_text(out / TABLE_FILE, markdown(comparison))
        draw_comparison(comparison, out / PLOT_FILE)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from error


def print_comparison(comparison: Comparison, out: Path) -> None:
    """Print the table, and where the files are."""
    console = Console()
    figures = list(comparison.sides[0].figures)
    header, rows = table_of(comparison)
    # Quartiles stand in the files only, and figures in a table of their own, so that 80 columns suffice.
    tables = [[*range(len(header) - len(figures))], [0, *range(len(header) - len(figures), len(header))]]
    tables[0].remove(QUARTILES_COLUMN)
    print(comparison.title)
    for columns in tables[: 2 if figures else 1]:
        table = Table(*(header[column] for column in columns))
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        console.print(table, highlight=False)
    print(f"noise: {comparison.sides[0].name} against itself {shown(comparison.noise, 3)}")
    print(f"checked: {comparison.question.checked}")
    for note in comparison.notes:
        print(f"note: {note}")
    for file in (TABLE_FILE, PLOT_FILE, JSON_FILE):
        print(f"  {out / file}")
