"""What finished runs reached, epoch by epoch, as Markdown: `python -m benchmarks.epochs RUN_DIRECTORY...`.

Losses and accuracies of training are means over the epoch's logged lines, each of which is a mean over its steps.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any

from trainer.run.metrics_file import read_metrics

UNSHOWN = ("logger=", "run.", "hydra.")


def table(run_dir: Path) -> list[str]:
    """The run's command, its data, and a line an epoch."""
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    words = [word for word in record["attempts"][-1]["command"][1:] if not word.startswith(UNSHOWN)]
    data = record["data"]
    count = sum(record["model"]["num_parameters"].values())
    lines = [
        f"## python -m trainer {' '.join(words)}",
        "",
        f"{count:,} parameters; train: {data['train']}; val: {data['val']}; {record['created'][:10]}",
        "",
        "| epoch | train/loss | train/accuracy | val/loss | val/accuracy | median samples/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    training, validation = split_lines(read_metrics(run_dir))
    for epoch, (own, val) in enumerate(zip(training, validation, strict=True), 1):
        loss, accuracy = (fmean(line[f"train/{name}"] for line in own) for name in ("loss", "accuracy"))
        rate = median(line["perf/samples_per_s"] for line in own)
        figures = f"{loss:.4f} | {accuracy:.4f} | {val['val/loss']:.4f} | {val['val/accuracy']:.4f} | {rate:,.0f}"
        lines.append(f"| {epoch} | {figures} |")
    return [*lines, ""]


def split_lines(lines: list[dict[str, Any]]) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Training lines grouped by the evaluation that follows them, and the evaluations."""
    validation = [line for line in lines if "val/loss" in line]
    ends = [line["step"] for line in validation]

    def epoch_of(line: dict[str, Any]) -> int:
        return sum(line["step"] > end for end in ends)

    training = [line for line in lines if "train/loss" in line and epoch_of(line) < len(ends)]
    return [list(own) for _, own in groupby(training, key=epoch_of)], validation


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print("\n".join(table(Path(argument))))
