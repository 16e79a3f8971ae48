"""The picture of a scaling study: speed-up, efficiency, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from trainer.bench.comparison import Comparison
from trainer.bench.result import Result
from trainer.bench.speedup import SpeedUp

# Parts of a step as the plot groups them, from the bottom of a bar.
GROUPS = {
    "forward": "computation",
    "backward": "computation",
    "optimizer": "computation",
    "communication": "communication",
    "imbalance": "waiting for the slowest rank",
    "data_wait": "data",
    "host_to_device": "host",
    "logging": "host",
    "other": "host",
}
COLORS = {
    "computation": "#4477aa",
    "communication": "#ee6677",
    "waiting for the slowest rank": "#ccbb44",
    "data": "#228833",
    "host": "#bbbbbb",
}
MEASURED, PREDICTED = {False: "#4477aa", True: "#aa3377"}, "--"


def draw(result: Result, file: Path) -> None:
    """Write the picture."""
    panels = [_speed_up, _efficiency] if result.strong or result.weak else [_gains]
    _save(result, panels, file)


def draw_comparison(comparison: Comparison, file: Path) -> None:
    """Write the picture of a comparison: every sample by side, and the parts of a unit of work where they are known."""
    _save(comparison, [_times], file)


def _save(result: Result | Comparison, panels: Sequence[Callable[[Any, Any], None]], file: Path) -> None:
    panels = [*panels, _parts] if result.parts() else panels
    figure = Figure(figsize=(4.6 * max(len(panels), 1.4), 3.8), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        panel(result, axes)
    figure.suptitle(result.title, fontsize=11, wrap=True)
    figure.savefig(file, dpi=110)


def _times(comparison: Comparison, axes: Any) -> None:
    names = list(comparison.samples)
    for place, name in enumerate(names):
        times_ms = [1000 * sample.time_s for sample in comparison.samples[name]]
        axes.plot(times_ms, [place] * len(times_ms), "o", alpha=0.5, color=MEASURED[False])
        axes.plot(median(times_ms), place, "|", markersize=22, color=MEASURED[True])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"ms a {comparison.question.unit}, {comparison.question.clock}; bar: median")
    axes.grid(alpha=0.3)


def _curves(result: Result) -> list[tuple[bool, Sequence[SpeedUp]]]:
    return [(weak, rows) for weak, rows in ((False, result.strong), (True, result.weak)) if rows]


def _speed_up(result: Result, axes: Any) -> None:
    for weak, rows in _curves(result):
        _measured(axes, [r.devices for r in rows], [r.speed_up for r in rows], weak)
    devices = sorted({row.devices for _, rows in _curves(result) for row in rows})
    axes.plot(devices, devices, color="black", linewidth=0.8, label="ideal")
    _finish(axes, "devices", "speed-up over one device")
    axes.set_xticks(devices)


def _efficiency(result: Result, axes: Any) -> None:
    for weak, rows in _curves(result):
        _measured(axes, [r.devices for r in rows], [r.efficiency for r in rows], weak)
        predicted = [p for p in result.predictions if p.weak == weak]
        if predicted:
            label = f"{'weak' if weak else 'strong'}, predicted"
            ends = [p.efficiency for p in predicted]
            axes.plot([p.devices for p in predicted], ends, PREDICTED, color=MEASURED[weak], label=label)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    _finish(axes, "devices", "efficiency")


def _measured(axes: Any, devices: list[int], intervals: list[Any], weak: bool) -> None:
    values = [i.value for i in intervals]
    below, above = [i.value - i.low for i in intervals], [i.high - i.value for i in intervals]
    label = f"{'weak' if weak else 'strong'}, measured"
    axes.errorbar(devices, values, [below, above], marker="o", capsize=4, color=MEASURED[weak], label=label)


def _gains(result: Result, axes: Any) -> None:
    names = list(result.gains)
    values = [result.gains[name].value for name in names]
    axes.bar(names, values, color=MEASURED[False])
    axes.bar_label(axes.containers[0], fmt="%.1f")
    axes.set_ylabel(f"speed-up over {names[0]}")


def _parts(result: Result | Comparison, axes: Any) -> None:
    sides = result.parts()
    bottom = dict.fromkeys(sides, 0.0)
    for group, color in COLORS.items():
        heights = [
            1000 * sum(spent for part, spent in parts.items() if GROUPS[part] == group) for parts in sides.values()
        ]
        axes.bar(list(sides), heights, bottom=list(bottom.values()), color=color, label=group)
        bottom = {name: base + height for (name, base), height in zip(bottom.items(), heights, strict=True)}
    axes.tick_params(axis="x", labelrotation=20)
    _finish(axes, "ranks" if isinstance(result, Result) else "", "ms of a step")


def _finish(axes: Any, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(alpha=0.3)
    # Above the axes, where it covers nothing that is drawn.
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
