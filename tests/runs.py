"""What two runs of one experiment have in common, however their ranks were started."""

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.run.metrics_file import read_metrics


@dataclass(frozen=True)
class Facts:
    """identity: hash of the configuration. files: of the run directory. losses: by step."""

    identity: str
    name: str
    files: frozenset[str]
    losses: tuple[tuple[int, float], ...]


def facts_of(run: Path) -> Facts:
    """Read a run directory."""
    losses = tuple((line["step"], line["train/loss"]) for line in read_metrics(run) if "train/loss" in line)
    files = frozenset(str(path.relative_to(run)) for path in run.rglob("*") if not path.is_dir())
    return Facts(json.loads((run / "run.json").read_text())["hash"], run.name, files, losses)


def only_run(root: Path) -> Path:
    """The one run below a root."""
    (record,) = root.glob("*/*/run.json")
    return record.parent
