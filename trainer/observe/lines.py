"""metrics.jsonl as a reader sees it. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run in order; a last line cut short by a kill is left out."""
    path = run_dir / METRICS_FILE
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
