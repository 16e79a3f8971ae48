"""The states of a run: each moment counts once, on the host and on a device that is behind it."""

from collections import deque
from typing import Any

import pytest

from trainer.clock import STATES, DeviceClock, StepClock, Times
from trainer.observe.step_time import LAG_MARGIN, RankTimes, step_metrics

MS = 1_000_000


class Host:
    """A counter that a test moves."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def __call__(self) -> int:
        return round(self.now_ms * MS)


def step(clock: Any, spend: Any) -> None:
    """One step of 10 ms, each state of another length."""
    clock.enter("data_wait")
    spend(1)
    clock.enter("host_to_device")
    spend(2)
    clock.enter("forward", "model")
    spend(3)
    with clock.within("backward", "model"):
        spend(2)
        clock.enter("communication", "model")
        spend(1)
    with clock.within("optimizer", "model"):
        spend(0.5)
    clock.enter("other")
    spend(0.5)
    clock.end_step()


EXPECTED = {
    "data_wait": 1.0,
    "host_to_device": 2.0,
    "forward": 3.0,
    "backward": 2.0,
    "communication": 1.0,
    "optimizer": 0.5,
    "logging": 0.0,
    "evaluation": 0.0,
    "checkpoint": 0.0,
    "other": 0.5,
}


def test_every_moment_is_in_one_state() -> None:
    host = Host()
    clock = StepClock(host)
    host.now_ms = 100.0
    clock.start()

    def spend(ms: float) -> None:
        host.now_ms += ms

    for _ in range(2):
        step(clock, spend)
        with clock.within("evaluation"):
            spend(50)
            # Neither a collective of an evaluation nor one of a checkpoint is the training's.
            with clock.communicating():
                spend(50)
    times = clock.take()
    assert clock.startup_ns == 100 * MS
    assert {s: ns / MS for s, ns in times.states.items()} == {s: 2 * v for s, v in EXPECTED.items()} | {
        "evaluation": 200.0
    }
    assert times.steps == [10 * MS, 10 * MS]
    assert times.networks == {"model": 13 * MS}
    assert times.steps_s == pytest.approx(0.020)
    assert sum(clock.run.values()) == sum(times.states.values())
    assert sum(clock.take().states.values()) == 0


def test_a_period_is_continued_by_the_next_attempt() -> None:
    host = Host()
    before = Times(steps=[7 * MS])
    before.states["forward"] = 7 * MS
    clock = StepClock(host)
    clock.restore(before)
    host.now_ms = 100.0
    clock.start()
    step(clock, lambda ms: setattr(host, "now_ms", host.now_ms + ms))
    assert clock.peek().states["forward"] == 10 * MS
    assert clock.take().steps == [7 * MS, 10 * MS]
    # The other attempt's time is not this one's.
    assert sum(clock.run.values()) == 10 * MS


class Device:
    """A stand-in for a stream of a GPU: it does what is enqueued later than the host asks for it.

    now_ms: until when it has worked; ahead: work that is enqueued and not done.
    """

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.queue: deque[Any] = deque()
        self.made: list[Any] = []

    def new_event(self) -> Any:
        self.made.append(Marker(self))
        return self.made[-1]

    def work(self, ms: float) -> None:
        self.queue.append(ms)

    def finish(self, number: int | None = None) -> None:
        """Do what was enqueued, or the next so many things of it."""
        for _ in range(len(self.queue) if number is None else number):
            entry = self.queue.popleft()
            if isinstance(entry, Marker):
                entry.at_ms = self.now_ms
            else:
                self.now_ms += entry


class Marker:
    """What torch.cuda.Event offers; asked for a time before it is done, torch raises."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.at_ms: float | None = None

    def record(self) -> None:
        self.at_ms = None
        self.device.queue.append(self)

    def query(self) -> bool:
        return self.at_ms is not None

    def elapsed_time(self, end: "Marker") -> float:
        if self.at_ms is None or end.at_ms is None:
            raise RuntimeError("both events must be completed")
        return end.at_ms - self.at_ms


def test_a_device_that_is_behind_is_timed_by_what_it_does() -> None:
    device = Device()
    clock = DeviceClock(device.new_event)
    device.finish()
    clock.start()
    for _ in range(3):
        step(clock, device.work)
    # The host has enqueued everything, and nothing is done: nothing is counted, and nothing waits.
    assert sum(clock.peek().states.values()) == 0
    device.finish(len(device.queue) // 2)
    half = sum(clock.peek().states.values())
    assert 0 < half < 30 * MS
    device.finish()
    times = clock.take()
    assert {state: ns / MS for state, ns in times.states.items()} == {s: 3 * v for s, v in EXPECTED.items()}
    assert times.steps == [10 * MS] * 3
    assert times.networks == {"model": 19.5 * MS}


def test_events_are_used_again_and_more_are_made_where_the_device_is_far_behind() -> None:
    device = Device()
    clock = DeviceClock(device.new_event)
    num_events = len(device.made)
    for _ in range(500):
        step(clock, device.work)
        device.finish()
    assert len(device.made) == num_events
    for _ in range(500):
        step(clock, device.work)
    assert len(device.made) > num_events
    device.finish()
    clock.take()
    assert sum(clock.run.values()) == 10_000 * MS


@pytest.mark.parametrize("on_device", [False, True])
def test_a_paused_clock_counts_nothing(on_device: bool) -> None:
    """Of steps of 10 ms, with a pause before, within and after them."""
    host, device = Host(), Device()
    clock = DeviceClock(device.new_event) if on_device else StepClock(host)

    def spend(ms: float) -> None:
        host.now_ms += ms
        device.work(ms)

    clock.start()
    for _ in range(2):
        with clock.paused():
            spend(70)
        clock.enter("forward", "model")
        spend(4)
        with clock.paused():
            spend(30)
        spend(6)
        clock.end_step()
    with clock.paused():
        spend(5)
    device.finish()
    times = clock.take()
    assert {state: ns / MS for state, ns in times.states.items() if ns} == {"forward": 20.0}
    assert (times.steps, times.networks) == ([10 * MS, 10 * MS], {"model": 20 * MS})


def test_step_times_and_shares() -> None:
    times = Times(steps=[ms * MS for ms in range(1, 101)])
    times.states.update(forward=2000 * MS, backward=3050 * MS, evaluation=5050 * MS)
    metrics = step_metrics(times, RankTimes([times.states]))
    assert metrics["perf/step_time_s"] == pytest.approx(0.0505)
    assert metrics["perf/step_time_p50_s"] == pytest.approx(0.050)
    assert metrics["perf/step_time_p95_s"] == pytest.approx(0.095)
    assert metrics["perf/step_time_max_s"] == pytest.approx(0.100)
    shares = {name: value for name, value in metrics.items() if name.startswith("perf/share_")}
    assert len(shares) == len(STATES)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["perf/share_evaluation"] == pytest.approx(0.5)
    assert not any("rank" in name for name in metrics)


@pytest.mark.parametrize(("slow_ms", "named"), [(1000 * (1 + LAG_MARGIN) + 1, True), (1000, False)])
def test_a_rank_that_lags_is_named(slow_ms: float, named: bool) -> None:
    """The others wait for it, so that all take the same time: what a rank does by itself tells them apart."""
    states = []
    for rank in range(4):
        times = Times()
        own = slow_ms if rank == 2 else 1000
        times.states.update(forward=int(own * MS), communication=int((slow_ms - own) * MS))
        states.append(times.states)
    metrics = step_metrics(Times(steps=[MS] * 10), RankTimes(states))
    assert metrics["perf/step_time_s_rank_2"] == pytest.approx(slow_ms / 10 / 1000)
    assert metrics.get("perf/slowest_rank") == (2.0 if named else None)
