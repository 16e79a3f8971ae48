"""scores.jsonl: one line per evaluation during training, {"step": ..., score: value, ..., protocol}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.run.files import write_text

SCORES_FILE = "scores.jsonl"


def append_score(run_dir: Path, line: Mapping[str, Any]) -> None:
    """Add a score with its protocol; lines of this step and later ones, which a killed attempt wrote, are replaced."""
    earlier = [score for score in read_scores(run_dir) if score["step"] < line["step"]]
    write_text(run_dir / SCORES_FILE, "".join(json.dumps(score) + "\n" for score in [*earlier, line]))


def read_scores(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run in order; a last line that is incomplete is left out."""
    path = run_dir / SCORES_FILE
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
