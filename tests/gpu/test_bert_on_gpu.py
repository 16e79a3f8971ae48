"""What only a GPU can show for BERT: the CPU's curve, and the faster ways staying on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CommandLine

from trainer.run.metrics_file import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]

WORDS = ["task=bert", "logger=none", "trainer.devices=1", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
WORDS += ["model.dropout=0.0", "optimizer.lr=0.0002"]


def curve(command_line: CommandLine, directory: Path, *words: str) -> np.ndarray:
    done = command_line(*WORDS, *words, f"run.root={directory}", timeout_s=280)
    assert done.returncode == 0, done.stderr
    (run,) = (directory / "bert").iterdir()
    return np.array([line["train/loss"] for line in read_metrics(run) if "train/loss" in line])


def test_the_curve_is_that_of_the_cpu(command_line: CommandLine, tmp_path: Path) -> None:
    cpu = curve(command_line, tmp_path / "cpu", "trainer.accelerator=cpu")
    gpu = curve(command_line, tmp_path / "gpu", "performance.float32_matmul_precision=highest")
    assert np.abs(cpu - gpu).max() < 1e-3


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=bf16-mixed", "performance.compile=true", "data.pad_to_multiple_of=8"],
        ["model.gradient_checkpointing=true"],
        ["optimizer.fused=true"],
        ["batch.micro_size=8"],
    ],
    ids=" ".join,
)
def test_faster_ways_stay_on_the_curve(words: list[str], command_line: CommandLine, tmp_path: Path) -> None:
    plain = curve(command_line, tmp_path / "plain")
    fast = curve(command_line, tmp_path / "fast", *words)
    assert np.abs(plain - fast).max() < 0.05
