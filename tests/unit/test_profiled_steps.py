"""The callback that records steps: when it starts and stops, what it names, and on which ranks there is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import SPIRALS_WORDS

from trainer.clock import StepClock
from trainer.config.compose import compose_mapping, typed
from trainer.profile.build import build_hook_times, build_profiled_steps
from trainer.profile.steps import ProfiledSteps


class Notes:
    """A recorder that notes what it is asked for."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self) -> None:
        self.notes.append("start")

    def stop(self) -> None:
        self.notes.append("stop")

    def open_range(self, name: str) -> str:
        self.notes.append(f"+{name}")
        return name

    def close_range(self, opened: str) -> None:
        self.notes.append(f"-{opened}")


def profiled(steps: tuple[int, int], done: int, *networks: str) -> tuple[Any, StepClock, list[str]]:
    """A callback in training that begins after a step. Returns: (it, its clock, what its recorder has noted)."""
    recorder, clock = Notes(), StepClock()
    callback: Any = ProfiledSteps(recorder, steps, clock)  # pyright: ignore[reportArgumentType]
    module = SimpleNamespace(networks=lambda: dict.fromkeys(networks))
    callback.on_train_start(SimpleNamespace(global_step=done), module)
    return callback, clock, recorder.notes


def test_ranges_of_several_networks_and_what_is_no_state_of_a_step() -> None:
    _, clock, notes = profiled((2, 2), 0, "generator", "discriminator")
    for _ in range(3):
        clock.enter("data_wait")
        clock.enter("other")
        clock.enter("forward", "generator")
        with clock.within("optimizer", "generator"):
            clock.peek()
        clock.end_step()
    forward, optimizer = "forward generator", "optimizer generator"
    states = ["data_wait", forward, optimizer, forward]
    expected = [f"{sign}{state}" for state in states for sign in "+-"]
    assert notes == ["start", "+step 2", *expected, "-step 2", "stop"]
    assert clock.observer is None


@pytest.mark.parametrize(("done", "said"), [(4, "continues after step 4"), (1, "ended after step 2 of 3")])
def test_steps_that_are_not_reached_are_logged(done: int, said: str, caplog: pytest.LogCaptureFixture) -> None:
    callback, clock, notes = profiled((2, 3), done, "model")
    clock.enter("data_wait")
    clock.end_step()
    clock.enter("data_wait")
    callback.on_exception(None, None, RuntimeError("out of memory"))
    assert said in caplog.text
    assert (notes[-2:] == ["-step 3", "stop"]) == (done == 1)
    assert clock.observer is None


@pytest.mark.parametrize("profiler", ["torch", "memory", "nsys", "python"])
def test_only_chosen_ranks_record(profiler: str, tmp_path: Path) -> None:
    words = [*SPIRALS_WORDS, f"profiler={profiler}", "profiler.ranks=[1,3]", "profiler.steps=[2,7]"]
    config = typed(compose_mapping(words))[0]
    built = {rank: build_profiled_steps(config, rank, tmp_path, StepClock()) for rank in range(5)}
    assert [rank for rank, found in built.items() if found] == [1, 3]
    (callback,) = built[3]
    assert (callback.first, callback.last, callback.recorder.rank, callback.recorder.steps) == (2, 7, 3, (2, 7))
    assert build_hook_times(config, 1, tmp_path) is None


def test_only_chosen_ranks_time_hooks(tmp_path: Path) -> None:
    config = typed(compose_mapping([*SPIRALS_WORDS, "profiler=simple", "profiler.ranks=[1]"]))[0]
    assert [rank for rank in range(3) if build_hook_times(config, rank, tmp_path)] == [1]
    assert build_profiled_steps(config, 1, tmp_path, StepClock()) == []
