"""The result of a scaling study, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.bench.rounds import Samples, mean_parts
from trainer.bench.speedup import Interval, SpeedUp, shown

UNITS = {"training": "step", "inference": "pass over the batches", "data": "epoch of batches"}


@dataclass(frozen=True)
class Prediction:
    """What the model of `StepModel` says; not a measurement."""

    devices: int
    weak: bool
    efficiency: float
    message_bytes: float
    bytes_per_s: float


@dataclass(frozen=True)
class Result:
    """A scaling study.

    strong, weak: rows by devices; empty where they were not measured. gains: by accelerator, over the first one.
    noise: one device against itself. difference: largest relative difference of what the sides computed.
    """

    kind: str
    facts: Mapping[str, Any]
    subject: str
    strong: Sequence[SpeedUp]
    weak: Sequence[SpeedUp]
    gains: Mapping[str, Interval]
    noise: Interval
    difference: float
    predictions: Sequence[Prediction]
    notes: Sequence[str]
    samples: Samples

    @property
    def title(self) -> str:
        """What was measured."""
        return f"Scaling of {self.kind}: {self.subject}"

    def predicted(self, devices: int, weak: bool) -> float | None:
        """The predicted efficiency, where there is one."""
        found = [p.efficiency for p in self.predictions if p.devices == devices and p.weak == weak]
        return found[0] if found else None

    def parts(self) -> dict[str, dict[str, float]]:
        """Mean seconds of a unit by part, for each side whose parts are known."""
        return mean_parts(self.samples)


def print_result(result: Result, out: Path, console: Console) -> None:
    """Print the table and where the files are."""
    for name, header, rows in rows_of(result):
        table = Table(*header, title=name, title_justify="left")
        for row in rows:
            # Intervals of what follows from the speed-up stand on the page.
            table.add_row(*row[:3], *(cell.partition(" ")[0] for cell in row[3:]))
        console.print(table, highlight=False)
    console.print(f"noise: one side against itself {shown(result.noise)}", highlight=False)
    console.print(f"largest relative difference of what the sides computed: {result.difference:.1e}", highlight=False)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for file in ("index.html", "scaling.png", "result.json"):
        console.print(f"  {out / file}", highlight=False, markup=False, soft_wrap=True)


Rows = list[tuple[str, list[str], list[list[str]]]]


def rows_of(result: Result) -> Rows:
    """Tables as text, each (title, header, rows)."""
    unit = UNITS[result.kind]
    header = ["devices", f"ms a {unit}", "speed-up", "efficiency", "serial fraction", "predicted"]
    tables: Rows = []
    for weak, rows in ((False, result.strong), (True, result.weak)):
        if not rows:
            continue
        title = "weak: as much work for each device" if weak else "strong: the same work on more devices"
        tables.append((title, header, [_row(result, row, weak) for row in rows]))
    if result.gains:
        gains = [[name, shown(gain)] for name, gain in result.gains.items()]
        tables.append(("one device of each kind", ["accelerator", "speed-up"], gains))
    return tables


def _row(result: Result, row: SpeedUp, weak: bool) -> list[str]:
    predicted = result.predicted(row.devices, weak)
    return [
        str(row.devices),
        f"{1000 * row.time_s:.2f}",
        shown(row.speed_up) if row.devices > 1 else "1",
        shown(row.efficiency) if row.devices > 1 else "1",
        shown(row.serial_fraction) if row.serial_fraction is not None else "",
        f"{predicted:.2f}" if predicted is not None else "",
    ]
