"""The lines and the bar of a run, against its metric lines."""

import re
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS

from trainer.cli import main
from trainer.run.metrics_file import read_metrics

# Epochs of 15 full steps of 32 and one of 20; every second one is evaluated.
WORDS = [*SPIRALS_WORDS, "model.dropout=0.0", "trainer.check_val_every_n_epoch=2"]


def test_each_epoch_prints_its_mean_training_loss(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "run.name=reference", "trainer.log_every_n_steps=1"]) == 0
    losses = [line["train/loss"] for line in read_metrics(Path("outputs/spirals/reference")) if "train/loss" in line]
    capsys.readouterr()
    assert main([*WORDS, "run.name=run", "trainer.log_every_n_steps=50"]) == 0
    lines = re.findall(r"^epoch (\d+)  step (\d+)  train/loss (\S+)(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [(int(epoch), int(step)) for epoch, step, *_ in lines] == [(1, 16), (2, 32), (3, 48)]
    for number, (*_, loss, rest) in enumerate(lines):
        of_epoch = losses[16 * number : 16 * (number + 1)]
        assert float(loss) == pytest.approx((sum(of_epoch[:15]) * 32 + of_epoch[15] * 20) / 500, abs=1e-4)
        assert ("val/accuracy" in rest) == (number > 0)


def test_the_bar_ends_at_the_last_epoch(
    in_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*WORDS, "trainer.log_every_n_steps=5"]) == 0
    shown = capsys.readouterr().out
    assert "48/48" in shown
    assert set(re.findall(r"epoch (\d+)", shown)) <= {"1", "2", "3"}
