"""metrics.jsonl: one line a logged step, {"step": ..., name: value, ...}."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainer.run.files import METRICS_FILE, fsync_path, open_plain


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run in order, without a last line that is incomplete after a kill."""
    path = run_dir / METRICS_FILE
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def metric_rows(run_dir: Path) -> dict[int, dict[str, float]]:
    """What was logged at each step, in the order of steps; of a metric that was logged twice, the last value."""
    rows: dict[int, dict[str, float]] = {}
    for line in read_metrics(run_dir):
        rows.setdefault(line.pop("step"), {}).update(line)
    return dict(sorted(rows.items()))


def metrics_size(run_dir: Path) -> int:
    """Bytes of metrics.jsonl; 0 where nothing was logged yet."""
    path = run_dir / METRICS_FILE
    return path.stat().st_size if path.exists() else 0


def flush_metrics(run_dir: Path) -> None:
    """Flush metrics.jsonl to disk, where anything was logged yet."""
    path = run_dir / METRICS_FILE
    if path.exists():
        fsync_path(path)


def cut_metrics(run_dir: Path, num_bytes: int) -> None:
    """Cut metrics.jsonl back to its first `num_bytes`, as far as they end in a complete line."""
    path = run_dir / METRICS_FILE
    if path.exists():
        complete = path.read_bytes()[:num_bytes].rfind(b"\n") + 1
        descriptor = open_plain(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, complete)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
