"""The states of a run against a stopwatch around its steps, and around all of it, for every task."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from trainer.cli import main
from trainer.clock import BETWEEN_STEPS, StepClock
from trainer.engine import train as engine
from trainer.engine.step_loop import StepLoop

WORDS = {
    "cnn": ["trainer.max_steps=40"],
    "bert": ["trainer.max_steps=8"],
    "dcgan": ["trainer.max_steps=5", "model.width=16"],
}


def named_s(clock: StepClock) -> float:
    """Seconds that the clock has counted in states of a step other than `other`."""
    clock.enter(clock.state, clock.network)
    unnamed = {*BETWEEN_STEPS, "other"}
    return sum(clock.run[s] + spent for s, spent in clock.period.states.items() if s not in unnamed) / 1e9


@pytest.mark.parametrize("task", WORDS)
def test_the_states_add_up(task: str, in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, train, end = StepLoop.advance, engine.train, engine.close_account
    shares: list[float] = []
    began: list[float] = []
    whole_s: list[float] = []

    def timed_step(self: StepLoop, fetcher: Any) -> None:
        clock = self.module.clock
        named, start = named_s(clock), time.perf_counter()
        advance(self, fetcher)
        wall = time.perf_counter() - start
        # A line's period ends within a step, and the clock's sums go on.
        shares.append((named_s(clock) - named) / wall)

    def timed_train(*arguments: Any) -> Any:
        began.append(time.perf_counter())
        return train(*arguments)

    def timed_end(*arguments: Any) -> Any:
        account = end(*arguments)
        whole_s.append(time.perf_counter() - began[0])
        return account

    monkeypatch.setattr(StepLoop, "advance", timed_step)
    monkeypatch.setattr(engine, "train", timed_train)
    monkeypatch.setattr(engine, "close_account", timed_end)
    common = ["trainer.max_epochs=null", "trainer.limit_val_batches=1", "trainer.enable_progress_bar=false"]
    assert main([f"task={task}", "logger=none", "trainer.accelerator=cpu", "run.name=run", *common, *WORDS[task]]) == 0
    # The median: a step in which another process had the core says nothing.
    assert statistics.median(shares) >= 0.97
    account = json.loads((in_directory / "outputs" / task / "run" / "run.json").read_text())["time"]
    assert account["startup_s"] + account["training_s"] == pytest.approx(whole_s[0], rel=0.01)
    assert sum(account["shares"].values()) == pytest.approx(1.0)
