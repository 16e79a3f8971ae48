"""The findings of checks, and how they are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.config.schema import Config
from trainer.errors import Problem, UserError, counted
from trainer.world import World

Status = Literal["ok", "warning", "failure", "skipped"]
COLOURS: Mapping[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    status: failure is what would end a run, warning what would slow it down or surprise, skipped what this
    configuration does not need. remedy: what to type or change; empty where there is nothing to do. time_s: duration of
    the check.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    time_s: float = 0.0


Check = Callable[[Config, World], Iterator[Finding]]


def from_problem(problem: Problem) -> Finding:
    """A problem of the configuration that depends on this machine."""
    return Finding("configuration", "failure", str(problem), f"change {problem.key}")


def from_error(name: str, error: UserError) -> Finding:
    """A user error of a run: its first line says what is wrong, the others what to do."""
    found, *advice = error.lines
    return Finding(name, "failure", found, "; ".join(advice) or f"change {found.partition('=')[0].partition(':')[0]}")


def without_repetitions(findings: Sequence[Finding]) -> list[Finding]:
    """Keep the last of equal findings: a check's remedy is more specific than that of the configuration."""
    last = {(finding.status, finding.found): finding for finding in findings}
    return [finding for finding in findings if last[finding.status, finding.found] is finding]


def as_json(findings: Sequence[Finding], time_s: float) -> str:
    """One object: whether a run would start (`fit`), the findings, and the total duration."""
    content = {"fit": not failures(findings), "time_s": time_s, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2)


def print_table(findings: Sequence[Finding], time_s: float) -> None:
    """Print the findings as a table, each remedy below its finding."""
    table = Table(show_lines=False)
    table.add_column("status", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("finding and remedy", overflow="fold")
    for finding in findings:
        remedy = f"\n[bold]-> {escape(finding.remedy)}[/bold]" if finding.remedy else ""
        colour = COLOURS[finding.status]
        status = f"[{colour}]{finding.status}[/{colour}]"
        table.add_row(status, finding.name, escape(finding.found) + remedy)
    numbers = {status: sum(finding.status == status for finding in findings) for status in COLOURS}
    counts = [
        counted(n, status) if status in ("failure", "warning") else f"{n} {status}"
        for status, n in numbers.items()
        if n
    ]
    console = Console(file=sys.stdout, highlight=False)
    console.print(table)
    console.print(f"{', '.join(counts)}; {time_s:.1f} s")


def failures(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that would end a run."""
    return [finding for finding in findings if finding.status == "failure"]
