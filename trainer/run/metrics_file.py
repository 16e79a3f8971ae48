"""metrics.jsonl: one line a logged step, {"step": ..., name: value, ...}."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.run.files import METRICS_FILE, write_text


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run in order; a last line cut short by a kill is left out."""
    path = run_dir / METRICS_FILE
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def drop_lines_after(run_dir: Path, step: int) -> None:
    """Remove what a killed attempt logged beyond the checkpoint that the run resumes from."""
    path = run_dir / METRICS_FILE
    if path.exists():
        kept = [line for line in read_metrics(run_dir) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
