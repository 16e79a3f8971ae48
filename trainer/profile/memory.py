"""profiler=memory: what tensors take, by category over time, and the largest allocations."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.profiler._memory_profiler import MemoryProfile, TensorKey

from trainer.profile.memory_picture import Timeline, category_name, category_of, draw_timeline, read_timeline
from trainer.profile.operators import TorchRecorder
from trainer.profile.recorder import is_range
from trainer.profile.tables import write_table

MAX_SNAPSHOT_EVENTS = 1_000_000
BACKWARD_PREFIX = "autograd::engine::evaluate_function: "


class MemoryRecorder(TorchRecorder):
    """The events of torch's allocator over the steps: memory-rank-N.png, allocations-rank-N.csv and .txt.

    On a GPU also snapshot-rank-N.pickle of all that was allocated there, which docs.pytorch.org/memory_viz shows. The
    events are read from the profile itself: torch's export of a timeline is deprecated, and draws GPUs only.
    """

    # Python's frames say which module has asked for the memory.
    options = {"profile_memory": True, "record_shapes": True, "with_stack": True}

    def start(self) -> None:
        """See Recorder."""
        if torch.cuda.is_initialized():
            torch.cuda.memory._record_memory_history(max_entries=MAX_SNAPSHOT_EVENTS, stacks="python")
        super().start()

    def stop(self) -> None:
        """See Recorder."""
        self.profile.stop()
        device = torch.device("cpu")
        if torch.cuda.is_initialized():
            torch.cuda.memory._dump_snapshot(str(self.file("snapshot", ".pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
            device = torch.device("cuda", torch.cuda.current_device())
        events = self.profile._memory_profile()
        ranges = _ranges(events)
        timeline = read_timeline(events, device, [(r.name, r.start_ns) for r in ranges if r.name.startswith("step ")])
        draw_timeline(timeline, f"{device.type}, {self.title}", self.file("memory", ".png"))
        self._write_allocations(events, device, ranges, timeline)

    def _write_allocations(
        self, events: MemoryProfile, device: torch.device, ranges: list[Range], timeline: Timeline
    ) -> None:
        states = [each for each in ranges if not each.name.startswith("step ")]
        counts = Counter(_allocations(events, device, states))
        rows = [[size / 2**20, count, *words] for (size, *words), count in counts.items()]
        rows.sort(key=lambda row: row[0], reverse=True)
        title = f"allocations, {device.type}, {self.title}; at most {timeline.peak_mib:.4g} MiB at once"
        columns = ["mib", "times", "category", "state", "operator", "module"]
        write_table(self.file("allocations", ""), title, columns, rows)


class Range(NamedTuple):
    """A range that was open for some time, nanoseconds."""

    name: str
    start_ns: int
    end_ns: int


class Allocation(NamedTuple):
    """What allocations of several steps have in common. module: the class of the innermost one that is running."""

    num_bytes: int
    category: str
    state: str
    operator: str
    module: str


def _ranges(events: MemoryProfile) -> list[Range]:
    """The steps and states, in the order of time."""
    found = [event for event in events._op_tree.dfs() if is_range(event.name)]
    ranges = [Range(event.name, event.start_time_ns, event.end_time_ns) for event in found]
    return sorted(ranges, key=lambda each: each.start_ns)


def _allocations(events: MemoryProfile, device: torch.device, states: list[Range]) -> Iterator[Allocation]:
    starts = [each.start_ns for each in states]
    for event in events._op_tree.dfs():
        fields: Any = event.typed[1]
        if event.tag.name != "Allocation" or fields.alloc_size <= 0 or fields.device != device:
            continue
        at = bisect_right(starts, event.start_time_ns) - 1
        state = states[at].name if at >= 0 and event.start_time_ns <= states[at].end_ns else ""
        key = TensorKey.from_allocation(fields)
        category = category_of(events, key, 0)
        yield Allocation(fields.alloc_size, category_name(category), state, *_origin(event))


def _origin(event: Any) -> tuple[str, str]:
    """Returns: (the operator that allocates, within the outermost one; the innermost module around it)."""
    operators: list[str] = []
    module = ""
    parent = event.parent
    while parent is not None:
        kind = parent.tag.name
        if kind == "TorchOp" and not module:
            operators.append(parent.name.removeprefix(BACKWARD_PREFIX))
        elif kind == "PyCall" and parent.name.startswith("nn.Module: ") and not module:
            module = re.sub(r"_\d+$", "", parent.name.removeprefix("nn.Module: "))
        parent = parent.parent
    if not operators:
        return "", module
    inner, outer = operators[0], operators[-1]
    return inner if inner == outer else f"{inner} in {outer}", module
