"""Run directories as a run writes them, with as many points as wanted."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

ATTEMPT = {
    "start": "2026-11-25T10:00:00+00:00",
    "end": "2026-11-25T10:01:30+00:00",
    "cause": "all 100 steps done",
    "command": ["trainer/__main__.py", "task=cnn"],
    "launcher": "single",
    "world_size": 1,
    "host": "node1",
    "git": {"sha": "0123abcd", "diff": ""},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "hardware": {"cpu": "a processor", "num_cores": 2, "gpus": []},
}
CONFIG = {
    "seed": 0,
    "task": {"name": "cnn"},
    "model": {"name": "lenet5"},
    "data": {"name": "digits"},
    "optimizer": {"name": "adam", "lr": 0.001},
    "monitor": {"metric": "val/accuracy", "mode": "max"},
}


def metrics_line(step: int, scale: float = 1.0) -> dict[str, float]:
    """What a step logs: a falling loss, a rate, shares that add up to 1."""
    wait = 0.2 + 0.1 * math.sin(step / 50)
    return {
        "step": step,
        "epoch": step // 100,
        "train/loss": scale * math.exp(-step / 300) + 0.05 * math.sin(step),
        "train/accuracy": 1 - math.exp(-step / 200),
        "optim/lr": 0.001 / (1 + step / 1000),
        "optim/grad_norm": 1 + 0.5 * math.cos(step / 7),
        "perf/samples_per_s": 900 + 50 * math.sin(step / 11),
        "perf/step_time_s": 0.03 + 0.001 * math.sin(step / 11),
        "perf/share_data_wait": wait,
        "perf/share_forward": 0.3,
        "perf/share_backward": 0.7 - wait,
    }


def write_run(
    directory: Path, num_points: int = 100, scale: float = 1.0, config: dict[str, Any] | None = None, **record: Any
) -> Path:
    """A finished run. Args: config, record: replace top-level values of config.yaml and run.json."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **(config or {})}, sort_keys=False))
    facts = {"data": {"train": "1,438 images"}, "model": {"num_parameters": {"model": 61706}}}
    (directory / "run.json").write_text(json.dumps({"status": "finished", "attempts": [ATTEMPT], **facts, **record}))
    with (directory / "metrics.jsonl").open("w") as file:
        for step in range(1, num_points + 1):
            file.write(json.dumps(metrics_line(step, scale)) + "\n")
            if step % max(1, num_points // 20) == 0:
                accuracy = 1 - scale * math.exp(-step / num_points)
                file.write(json.dumps({"step": step, "val/loss": scale / step, "val/accuracy": accuracy}) + "\n")
    return directory


def append_line(directory: Path, **values: float) -> None:
    """One more line, as a run that goes on writes it."""
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")


def damaged_line(run: Path) -> None:
    """Cut the fourth line of a run's metrics."""
    lines = (run / "metrics.jsonl").read_text().split("\n")
    lines[3] = lines[3][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines))
