"""The dated file that a benchmark writes, and the machine and versions that it names."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

from trainer.run.provenance import cpu_name

RESULTS = Path(__file__).parent / "results"


def surroundings(used: str, *packages: str) -> list[str]:
    """Lines of Markdown on hardware and versions. Args: used: what of this machine, such as "one thread"."""
    versions = [f"{name} {version(name)}" for name in packages]
    return [
        f"- Hardware: {cpu_name()}, {os.cpu_count()} cores, {used}",
        f"- Versions: {', '.join([*versions, f'python {platform.python_version()}'])}",
    ]


def write_result(name: str, text: str) -> None:
    """Print a result, and write benchmarks/results/<today>-<name>.md."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{datetime.date.today()}-{name}.md").write_text(text, encoding="utf-8")
