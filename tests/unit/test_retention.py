"""Which checkpoints are kept: the newest, the best, and one every so many hours."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, SPIRALS

from trainer.checkpoint.callback import Checkpointing
from trainer.checkpoint.retention import Retention
from trainer.cli import main

WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.limit_train_batches=5",
    "trainer.max_epochs=6",
    "monitor.metric=val/accuracy",
    "monitor.mode=max",
    "run.name=run",
]
CHECKPOINTS = Path("outputs", "faulty", "run", "checkpoints")


def manifests(*hours: float | None) -> dict[int, dict[str, Any]]:
    """Checkpoints of the steps 1, 2, ... at these hours; None is one without a time."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = [{} if hour is None else {"time": (start + timedelta(hours=hour)).isoformat()} for hour in hours]
    return dict(enumerate(times, 1))


@pytest.mark.parametrize(
    ("retention", "best", "kept"),
    [
        (Retention(2), [], {6, 7}),
        (Retention(1), [3, 5], {3, 5, 7}),
        (Retention(1, every_h=1.0), [], {2, 4, 7}),
        (Retention(1, every_h=0.5), [], {2, 3, 4, 6, 7}),
        (Retention(1, every_h=100.0), [], {2, 7}),
        (Retention(9), [12], {1, 2, 3, 4, 5, 6, 7, 12}),
    ],
)
def test_what_is_kept(retention: Retention, best: list[int], kept: set[int]) -> None:
    assert retention.kept(manifests(None, 0.0, 0.5, 1.0, 1.2, 1.9, 2.0), best) == kept


def test_what_is_kept_for_good_remains_when_others_have_gone() -> None:
    retention, present = Retention(1, every_h=1.0), manifests(*(0.3 * n for n in range(20)))
    for newest in range(1, 21):
        seen = {step: manifest for step, manifest in present.items() if step <= newest}
        kept = retention.kept(seen, [])
        present = {step: manifest for step, manifest in present.items() if step > newest or step in kept}
    # Every 1.2 hours, since checkpoints come every 0.3 hours.
    assert sorted(present) == [1, 5, 9, 13, 17, 20]


def names() -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in CHECKPOINTS.glob("step-*"))


def test_the_checkpoints_of_the_best_evaluations_are_kept_also_over_a_resume(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "checkpoint.keep=1", "checkpoint.keep_best=2", "checkpoint.at_evaluation=false"]
    monkeypatch.setenv("EVALUATED", "0.5,0.9,0.3,0.8,0.9,0.1")
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", "sigterm:0:16")
        assert main(words) == 75
    # The evaluation after step 15 was not among the best and is not saved.
    assert names() == [5, 10, 17]
    assert main(words) == 0
    # 0.9 after steps 10 and 25, of which the first is the best.
    assert names() == [10, 25, 30]
    assert (CHECKPOINTS / "best").resolve().name == "step-00000010"
    assert json.loads((CHECKPOINTS / "last" / "manifest.json").read_text())["best_step"] == 10


def test_a_cadence_in_seconds(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("trainer.checkpoint.callback.time.monotonic", lambda: now[0])
    saved: list[int] = []
    save, batch_end = Checkpointing.save, Checkpointing.on_train_batch_end

    def noted(self: Checkpointing, trainer: Any, *arguments: Any, **options: Any) -> None:
        saved.append(trainer.global_step)
        save(self, trainer, *arguments, **options)

    def a_second_later(self: Checkpointing, *arguments: Any) -> None:
        now[0] += 1
        batch_end(self, *arguments)

    monkeypatch.setattr(Checkpointing, "save", noted)
    monkeypatch.setattr(Checkpointing, "on_train_batch_end", a_second_later)
    words = [*WORDS, "trainer.limit_val_batches=0", "trainer.max_steps=20", "trainer.max_epochs=null"]
    assert main([*words, "checkpoint.every_s=6", "checkpoint.every_n_steps=10"]) == 0
    # Counted from the last save, whatever its cause.
    assert saved == [6, 10, 16, 20]
