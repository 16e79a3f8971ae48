"""1, 2 and 3 ranks: the same curve, the same metrics for any size of set, and exact resumption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SPIRALS_WORDS, CommandLine
from safetensors.torch import load_file

from trainer.run.metrics_file import read_metrics

# 61 validation points in batches of 20: the last one has a single point, so some ranks have none.
WORDS = [
    *SPIRALS_WORDS,
    "model.dropout=0.0",
    "trainer.log_every_n_steps=1",
    "batch.eval_size=20",
    "batch.global_size=30",
]


def lines_of(directory: Path) -> list[dict[str, float]]:
    (run,) = (directory / "outputs" / "spirals").iterdir()
    return read_metrics(run)


def test_curve_and_metrics_do_not_depend_on_the_ranks(command_line: CommandLine, tmp_path: Path) -> None:
    runs = {}
    for ranks in (1, 2, 3):
        directory = tmp_path / str(ranks)
        directory.mkdir()
        words = [*WORDS, f"trainer.devices={ranks}", "data.num_validation=61", "trainer.max_epochs=2"]
        done = command_line(*words, cwd=directory)
        assert done.returncode == 0, done.stderr
        runs[ranks] = lines_of(directory)
    for ranks in (2, 3):
        for one, many in zip(runs[1], runs[ranks], strict=True):
            assert one.keys() == many.keys()
            for name, value in one.items():
                if not name.startswith("perf/"):
                    assert many[name] == pytest.approx(value, abs=1e-6), (ranks, name, one["step"])


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit(command_line: CommandLine, tmp_path: Path) -> None:
    """Dropout on: each rank's own generator must go on where it stood."""
    words = [
        *SPIRALS_WORDS,
        "model.dropout=0.3",
        "trainer.devices=2",
        "trainer.max_epochs=40",
        "trainer.log_every_n_steps=1",
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert command_line(*words, cwd=whole).returncode == 0

    command = [sys.executable, "-m", "trainer", *words]
    with subprocess.Popen(command, cwd=stopped, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 60
        while not list(stopped.glob("outputs/spirals/*/metrics.jsonl")):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(parent.pid, signal.SIGTERM)
    assert parent.returncode == 75
    (run,) = (stopped / "outputs" / "spirals").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert command_line(*words, cwd=stopped).returncode == 0

    (expected,) = whole.glob("outputs/spirals/*/model.safetensors")
    first, second = load_file(expected), load_file(run / "model.safetensors")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert len(json.loads((run / "run.json").read_text())["attempts"]) == 2
