"""The table of a sweep's jobs, best first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.verbs.sweep.jobs import Job, SweepPlan


def print_table(plan: SweepPlan, jobs: Sequence[Job]) -> None:
    """Print a row for each job: its values, its best monitor.metric, its status and its run directory."""
    monitor = plan.config.monitor
    keys = [override.key_or_group for override in plan.swept]
    table = Table("job", *keys, monitor.metric, "status", title=str(plan.directory))
    # A path is folded on narrow terminals, not cut: it is there to be copied.
    table.add_column("run", overflow="fold")
    for job in by_value(jobs, monitor.mode):
        values = [word.partition("=")[2] for word in job.words]
        reached = "" if job.value is None else f"{job.value:.6g}"
        run = plan.run_dir(job)
        table.add_row(str(job.number), *map(escape, values), reached, job.status, str(run or ""))
    Console().print(table)


def by_value(jobs: Sequence[Job], mode: str) -> list[Job]:
    """Best first; jobs without a value last, in their own order."""
    sign = -1.0 if mode == "max" else 1.0
    return sorted(jobs, key=lambda job: (job.value is None, sign * (job.value or 0.0), job.number))
