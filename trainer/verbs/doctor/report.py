"""What a check says, and how it is shown. Torch-free."""

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
from trainer.errors import Problem, UserError
from trainer.world import World

Status = Literal["ok", "warning", "failure", "skipped"]
COLOURS: Mapping[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    status: failure is what would end a run, warning what would slow it down or surprise, skipped what this
    configuration does not need. remedy: what to type or change; empty where nothing is to be done. time_s: how long the
    check took to say so.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    time_s: float = 0.0


Check = Callable[[Config, World], Iterator[Finding]]


def from_problem(problem: Problem) -> Finding:
    """A mistake in the configuration that shows only on this machine."""
    return Finding("configuration", "failure", str(problem), f"change {problem.key}")


def from_error(name: str, error: UserError) -> Finding:
    """What a run would tell the user: what is wrong on the first line, what to do on those below."""
    found, *advice = error.lines
    return Finding(name, "failure", found, "; ".join(advice) or f"change {found.partition('=')[0].partition(':')[0]}")


def without_repetitions(findings: Sequence[Finding]) -> list[Finding]:
    """The same mistake can be seen by the configuration and by a check, whose remedy is nearer: the last one stays."""
    told = {(finding.status, finding.found): finding for finding in findings}
    return [finding for finding in findings if told[finding.status, finding.found] is finding]


def as_json(findings: Sequence[Finding], time_s: float) -> str:
    """One object: whether a run would go, all findings, and seconds in all."""
    content = {"fit": not failures(findings), "time_s": time_s, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2)


def print_table(findings: Sequence[Finding], time_s: float) -> None:
    """The findings for people; the remedy stands below what was found."""
    table = Table(show_lines=False)
    table.add_column("status", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found, and what to do about it", overflow="fold")
    for finding in findings:
        remedy = f"\n[bold]-> {escape(finding.remedy)}[/bold]" if finding.remedy else ""
        colour = COLOURS[finding.status]
        status = f"[{colour}]{finding.status}[/{colour}]"
        table.add_row(status, finding.name, escape(finding.found) + remedy)
    counts = [(sum(finding.status == status for finding in findings), status) for status in COLOURS]
    console = Console(file=sys.stdout, highlight=False)
    console.print(table)
    console.print(", ".join(f"{count} {status}" for count, status in counts if count) + f"; {time_s:.1f} s")


def failures(findings: Sequence[Finding]) -> list[Finding]:
    """What would end a run."""
    return [finding for finding in findings if finding.status == "failure"]
