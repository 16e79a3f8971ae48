"""What a rank's heartbeat says in steps, evaluations and pauses, as the watchdog reads it."""

import mmap
import time
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS

from trainer.clock import StepClock
from trainer.faults.heartbeat import Heartbeat
from trainer.faults.watchdog import LONGEST_STEPS, Beat, Limits
from trainer.verbs.prepare import Options, prepare


@pytest.fixture
def heartbeat(tmp_path: Path) -> Heartbeat:
    prepared = prepare(SPIRALS_WORDS, Options())
    heartbeat = Heartbeat(prepared.config, prepared.world, tmp_path, StepClock())
    heartbeat.page = mmap.mmap(-1, mmap.PAGESIZE)
    heartbeat.base_ns = heartbeat.started_ns = time.monotonic_ns()
    heartbeat.clock.heartbeat = heartbeat
    return heartbeat


def test_an_evaluation_and_a_pause_are_no_part_of_a_step(heartbeat: Heartbeat) -> None:
    clock, page = heartbeat.clock, heartbeat.page
    clock.enter("forward", "generator")
    before = Beat.read(page)
    assert (before.step, before.network, before.between_steps) == (0, "generator", False)
    for block in (clock.within("evaluation"), clock.within("checkpoint"), clock.paused()):
        with block:
            assert Beat.read(page).between_steps
        after = Beat.read(page)
        # The step in progress begins anew.
        assert not after.between_steps and after.base_s > before.base_s
        before = after
    clock.end_step()
    assert Beat.read(page).step == 1
    assert Beat.read(page).longest_s > 0


def test_the_limit_follows_the_longest_step() -> None:
    limits = Limits(None, floor_s=60.0, cap_s=600.0)
    assert [limits.of(longest_s) for longest_s in (0.1, 10.0, 100.0)] == [60.0, LONGEST_STEPS * 10.0, 600.0]
    assert Limits(7.0, 60.0, 600.0).of(100.0) == 7.0
