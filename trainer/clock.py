"""The clock of a run: at every moment the run is in exactly one state, and the clock adds up the time in each.

Nothing here waits for a device. On the CPU a change of state reads the host's counter. Work on a GPU is asynchronous,
so there a change of state records an event in the stream: the time between two events is what the device took, and it
is read when both are done. A device that has nothing to do while the host waits for data is so seen to wait for data,
and one that still computes is not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

State = Literal[
    "data_wait",
    "host_to_device",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "logging",
    "evaluation",
    "checkpoint",
    "other",
]
STATES: tuple[State, ...] = State.__args__  # pyright: ignore[reportAttributeAccessIssue]
# All but these belong to steps of training.
BETWEEN_STEPS: frozenset[State] = frozenset({"evaluation", "checkpoint"})
NETWORK_STATES: frozenset[State] = frozenset({"forward", "backward", "communication", "optimizer"})
NUM_EVENTS = 512  # of about 8 a step; more are made where the device is further behind


@dataclass
class Times:
    """Nanoseconds by state, by network within a step's passes and updates, and of each completed step.

    A step's time is without evaluation and checkpoints.
    """

    states: dict[State, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    networks: dict[str, int] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)

    def add(self, other: Times) -> None:
        """Add the times of another period."""
        for state, spent in other.states.items():
            self.states[state] += spent
        for network, spent in other.networks.items():
            self.networks[network] = self.networks.get(network, 0) + spent
        self.steps += other.steps

    @property
    def steps_s(self) -> float:
        """Seconds of the completed steps. What follows the last one, such as the end of training, is not theirs."""
        return sum(self.steps) / 1e9


class Observer(Protocol):
    """Hears of the clock, as a profiler does that names the parts of a step."""

    def on_state(self, state: State, network: str) -> None:
        """The run is in a state, which may be the one before."""
        ...

    def on_step_end(self) -> None:
        """A step has ended."""
        ...


class _Within:
    """A class, since a generator's context would cost twice as much."""

    __slots__ = ("before", "clock", "network", "state")

    def __init__(self, clock: StepClock, state: State, network: str) -> None:
        self.clock, self.network = clock, network
        self.state: State = state
        self.before: tuple[State, str] = ("other", "")

    def __enter__(self) -> None:
        self.before = self.clock.state, self.clock.network
        self.clock.enter(self.state, self.network)

    def __exit__(self, *error: object) -> None:
        self.clock.enter(*self.before)


class StepClock:
    """Counts on the host. A period is what lies between two calls of `take`.

    run: nanoseconds by state of all periods of this attempt that have ended; startup_ns: what came before its first.
    """

    def __init__(self, read_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.read_ns = read_ns
        self.state: State = "other"
        self.network = ""
        self.run: dict[State, int] = dict.fromkeys(STATES, 0)
        self.startup_ns = 0
        self.period = Times()
        # Of a period that an earlier attempt has begun.
        self.carried: Times | None = None
        self.step_ns = 0
        # The profiler and the watchdog's heartbeat.
        self.observer: Observer | None = None
        self.heartbeat: Observer | None = None
        self.is_paused = False
        self.since_ns = read_ns()

    def enter(self, state: State, network: str = "") -> None:
        """Be in a state from now on. Args: network: whose pass or update it is, where a task has several."""
        now = self.read_ns()
        self._count(self.state, self.network, now - self.since_ns)
        self.since_ns, self.state, self.network = now, state, network
        if self.heartbeat is not None:
            self.heartbeat.on_state(state, network)
        if self.observer is not None:
            self.observer.on_state(state, network)

    def end_step(self) -> None:
        """A step ends here."""
        self.enter(self.state, self.network)
        self._end_step()
        if self.heartbeat is not None:
            self.heartbeat.on_step_end()
        if self.observer is not None:
            self.observer.on_step_end()

    def within(self, state: State, network: str = "") -> _Within:
        """Be in a state within the block, then again in the one before."""
        return _Within(self, state, network)

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """A collective, which is a state of its own within a pass only: an evaluation's belong to the evaluation."""
        if self.state not in NETWORK_STATES:
            yield
            return
        with self.within("communication", self.network):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time within the block is in no state and belongs to no step, as that of a profiler."""
        self.is_paused = True
        self.enter(self.state, self.network)
        self._leave_out()
        try:
            yield
        finally:
            self.is_paused = False
            self._resume()
            if self.heartbeat is not None:
                self.heartbeat.on_state(self.state, self.network)

    def start(self) -> None:
        """Training begins: the time so far belongs to no step."""
        self.peek()
        self.startup_ns += sum(self.period.states.values())
        self.period, self.step_ns = Times(), 0

    def take(self) -> Times:
        """End the period and begin another. Returns: its times, with those that were restored."""
        taken = self.peek()
        for state, spent in self.period.states.items():
            self.run[state] += spent
        self.period, self.carried = Times(), None
        return taken

    def peek(self) -> Times:
        """The times of the period so far, with those that were restored."""
        self.enter(self.state, self.network)
        self._settle()
        times = Times()
        if self.carried is not None:
            times.add(self.carried)
        times.add(self.period)
        return times

    def restore(self, times: Times) -> None:
        """Continue a period that an earlier attempt has begun; called before `start`."""
        self.carried = times

    def _settle(self) -> None:
        """Count what has been marked and not been counted."""

    def _leave_out(self) -> None:
        """Do not count the time from here to `_resume`."""

    def _resume(self) -> None:
        self.since_ns = self.read_ns()

    def _count(self, state: State, network: str, spent_ns: int) -> None:
        self.period.states[state] += spent_ns
        if state not in BETWEEN_STEPS:
            self.step_ns += spent_ns
        if network:
            self.period.networks[network] = self.period.networks.get(network, 0) + spent_ns

    def _end_step(self) -> None:
        self.period.steps.append(self.step_ns)
        self.step_ns = 0


class Event(Protocol):
    """What torch.cuda.Event(enable_timing=True) offers."""

    def record(self) -> Any:
        """Enqueue it."""
        ...

    def query(self) -> bool:
        """Whether the device has reached it."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds between two that the device has reached."""
        ...


@dataclass
class _Mark:
    event: Event
    state: State | None
    network: str
    ends_step: bool


class DeviceClock(StepClock):
    """Counts on a device: a change of state is an event in its current stream.

    What the device has not done yet is counted in the period in which it is found to be done. A caller that needs a
    complete period waits for the device before `take`, as reading a metric does.
    """

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self.new_event = new_event
        self.free = [new_event() for _ in range(NUM_EVENTS)]
        self.marks: deque[_Mark] = deque()
        super().__init__(lambda: 0)
        self.enter("other")

    def enter(self, state: State, network: str = "") -> None:
        """See StepClock."""
        self._mark(state, network, ends_step=False)
        if self.heartbeat is not None:
            self.heartbeat.on_state(state, network)
        if self.observer is not None:
            self.observer.on_state(state, network)

    def end_step(self) -> None:
        """See StepClock; events that are done are read here, so that they can be used again."""
        self._mark(self.state, self.network, ends_step=True)
        self._settle()
        if self.heartbeat is not None:
            self.heartbeat.on_step_end()
        if self.observer is not None:
            self.observer.on_step_end()

    def _mark(self, state: State, network: str, ends_step: bool) -> None:
        event = self.free.pop() if self.free else self.new_event()
        event.record()
        self.marks.append(_Mark(event, state, network, ends_step))
        self.state, self.network = state, network

    def _leave_out(self) -> None:
        """See StepClock."""
        self.marks[-1].state = None

    def _resume(self) -> None:
        self._mark(self.state, self.network, ends_step=False)

    def _settle(self) -> None:
        """Count the time between events that are done."""
        while len(self.marks) > 1 and self.marks[1].event.query():
            first, second = self.marks.popleft(), self.marks[0]
            if first.state is not None:
                self._count(first.state, first.network, round(first.event.elapsed_time(second.event) * 1e6))
            if second.ends_step:
                self._end_step()
            self.free.append(first.event)
