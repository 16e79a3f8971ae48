"""A picture of the memory of tensors over time, by category."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from torch.profiler._memory_profiler import Action, Category, MemoryProfile, TensorKey

# In the order in which they are stacked: what stays over the steps first.
COLORS: dict[Category | None, str] = {
    Category.PARAMETER: "#4269d0",
    Category.OPTIMIZER_STATE: "#9c6b4e",
    Category.INPUT: "#6cc5b0",
    Category.ACTIVATION: "#ff725c",
    Category.GRADIENT: "#efb118",
    Category.AUTOGRAD_DETAIL: "#a463f2",
    Category.TEMPORARY: "#ff8ab7",
    None: "#9498a0",
}


@dataclass(frozen=True)
class Timeline:
    """times_ms: (N,), from the first event on. mib: (N, C), by the categories of COLORS. steps: name and start, ms."""

    times_ms: np.ndarray
    mib: np.ndarray
    steps: list[tuple[str, float]]

    @property
    def peak_mib(self) -> float:
        """The most that was taken at once."""
        return float(self.mib.sum(axis=1).max(initial=0.0))


def read_timeline(events: MemoryProfile, device: torch.device, steps: list[tuple[str, int]]) -> Timeline:
    """What tensors take after each event of the allocator. Args: steps: name and start of each, nanoseconds."""
    changes: list[tuple[int, Category | None, int]] = []
    for time_ns, action, (key, version), num_bytes in events.timeline:
        if key.device != device:
            continue
        before = category_of(events, key, version)
        if action in (Action.PREEXISTING, Action.CREATE):
            changes.append((time_ns, before, num_bytes))
        else:
            changes.append((time_ns, before, -num_bytes))
        if action == Action.INCREMENT_VERSION:
            changes.append((time_ns, category_of(events, key, version + 1), num_bytes))
    order = list(COLORS)
    sizes = np.zeros((len(changes), len(order)))
    for row, (_, category, num_bytes) in enumerate(changes):
        sizes[row, order.index(category)] = num_bytes / 2**20
    # What existed before has no time.
    begin_ns = min([time_ns for time_ns, _, _ in changes if time_ns > 0] + [start for _, start in steps], default=0)
    times_ms = np.array([max(0, time_ns - begin_ns) / 1e6 for time_ns, _, _ in changes])
    return Timeline(times_ms, sizes.cumsum(axis=0), [(name, (start - begin_ns) / 1e6) for name, start in steps])


def category_of(events: MemoryProfile, key: Any, version: int) -> Category | None:
    """What a version of a tensor is; None where torch cannot tell."""
    return events._categories.get(key, version) if isinstance(key, TensorKey) else None


def category_name(category: Category | None) -> str:
    """A category as text."""
    return category.name.lower().replace("_", " ") if category is not None else "unknown"


def draw_timeline(timeline: Timeline, title: str, path: Path) -> None:
    """Draw it as a PNG."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes: Any = figure.add_subplot()
    upper = np.zeros(len(timeline.times_ms))
    for column, (category, color) in enumerate(COLORS.items()):
        lower, upper = upper, upper + timeline.mib[:, column]
        if timeline.mib[:, column].any():
            label = category_name(category)
            axes.fill_between(timeline.times_ms, lower, upper, step="post", color=color, linewidth=0, label=label)
    axes.set_ylim(bottom=0.0)
    for name, start_ms in timeline.steps:
        axes.axvline(start_ms, color="black", linewidth=0.7, linestyle=":")
        axes.annotate(name, (start_ms, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -11),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set_xlabel("ms")
    axes.set_ylabel("MiB")
    axes.set_title(f"tensors of these steps, {title}: at most {timeline.peak_mib:.4g} MiB", loc="left", fontsize=10)
    resident_gib = psutil.Process().memory_info().rss / 2**30
    note = f"What the steps do not use is not in it; the process takes {resident_gib:.2f} GiB of the host's memory."
    figure.supxlabel(note, fontsize=8, color="dimgray")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=120)
