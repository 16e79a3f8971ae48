"""The dated file that a benchmark writes, and the machine and versions that it names."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from trainer.bench.compare import write_comparison
from trainer.bench.comparison import Comparison, markdown
from trainer.run.provenance import cpu_name

RESULTS = Path(__file__).parent / "results"


def surroundings(used: str, *packages: str) -> list[str]:
    """Lines of Markdown on hardware and versions. Args: used: what of this machine, such as "one thread"."""
    versions = [f"{name} {version(name)}" for name in packages]
    return [
        f"- Hardware: {cpu_name()}, {os.cpu_count()} cores, {used}",
        f"- Versions: {', '.join([*versions, f'python {platform.python_version()}'])}",
    ]


def write_comparison_result(name: str, comparison: Comparison, goals: Mapping[str, float]) -> int:
    """Write benchmarks/results/<today>-<name>.md with a line for each goal, and every sample under outputs/bench.

    Args: goals: by side, its time over that of the first side: at least that where it is above 1, else at most.
    Returns: 0 when all goals are met and all sides compute the same, else 1.
    """
    write_comparison(comparison, Path("outputs", "bench", name))
    lines, met = [], not comparison.notes
    for side in comparison.sides:
        if side.name in goals:
            ratio, goal = side.relative_time.value, goals[side.name]
            reached = ratio >= goal if goal > 1 else ratio <= goal
            met = met and reached
            bound = "at least" if goal > 1 else "at most"
            lines.append(f"- goal: {side.name}, time {bound} {goal} times: {'met' if reached else 'missed'}\n")
    write_result(name, markdown(comparison) + "".join(lines))
    return 0 if met else 1


def write_result(name: str, text: str) -> None:
    """Print a result, and write benchmarks/results/<today>-<name>.md."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{datetime.date.today()}-{name}.md").write_text(text, encoding="utf-8")
