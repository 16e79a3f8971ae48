"""What a run prints at its start and at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from trainer.config.own_parts import OBJECT, TARGET, own_targets
from trainer.config.profilers import NsysProfilerConfig, StepsProfilerConfig
from trainer.config.schema import Config
from trainer.observe.account import Account
from trainer.run.files import CURVES_FILE, HF_DIR, LOGS_DIR, METRICS_FILE, MODEL_FILE, PROFILE_DIR, REPORT_FILE
from trainer.run.media import find_profile
from trainer.run.metrics_file import read_metrics
from trainer.world import World

# Of some thirty figures that metrics.jsonl has, those that a reader looks for first.
PERFORMANCE = {
    f"perf/{name}"
    for name in ("samples_per_s", "tokens_per_s", "step_time_s", "mfu", "mfu_measured", "peak_memory_gib")
}

MAX_NAMES = 6  # of a profile's files


def print_start(
    console: Console, run_dir: Path, config: Config, world: World, facts: Mapping[str, Any], origin: Sequence[str]
) -> None:
    """Print directory, model, ranks and data, and where the attempt begins.

    Args: facts: "model" with its num_parameters by network, and "data" with strings or mappings by name. origin: lines
    about the checkpoint or the weights.
    """
    _print(console, str(run_dir), style="bold")
    num_parameters = sum(facts["model"]["num_parameters"].values())
    ranks = "1 rank" if world.world_size == 1 else f"{world.world_size} ranks"
    where = f"{ranks}, {world.accelerator}, {config.trainer.precision}"
    _print(console, f"{config.model.name} ({num_parameters:,} parameters) on {config.data.name}; {where}")
    for name, value in facts["data"].items():
        _print(console, f"  {name}: {_plain(value)}")
    for line in origin:
        _print(console, line)


def print_summary(console: Console, run_dir: Path, config: Config, account: Account, places: Mapping[str, str]) -> None:
    """Print the final metrics, where time went, where to find the results, and the next command; draw the curves.

    Args: places: where services show the run, by the service's name.
    """
    lines = read_metrics(run_dir)
    latest: dict[str, float] = {}
    for line in lines:
        latest |= {name: value for name, value in line.items() if name != "step"}
    table = Table(Column("metric", overflow="fold"), Column("last", no_wrap=True), Column("best", no_wrap=True))
    for name in sorted(latest):
        if name.startswith(("train/", "val/", "test/")) or name in PERFORMANCE:
            table.add_row(name, _figure(latest[name]), _best(name, lines, config))
    console.print(table)
    if config.trainer.fast_dev_run:
        _print(console, "fast_dev_run: training, evaluation, test and checkpoint have worked; nothing of it is kept")
        return
    files = {"run": "", "metrics": METRICS_FILE, "model": MODEL_FILE}
    if config.run.report:
        plot_curves(lines, run_dir / CURVES_FILE)
        files = {"run": "", "curves": CURVES_FILE, **files}
    for line in account.lines():
        _print(console, line)
    files |= {"report": REPORT_FILE} if (run_dir / REPORT_FILE).exists() else {}
    profile = [path.name for path in find_profile(run_dir)]
    if profile:
        files["profile"] = f"{PROFILE_DIR}: {_some(profile)}"
    elif isinstance(config.profiler, StepsProfilerConfig) and not isinstance(config.profiler, NsysProfilerConfig):
        files["profile"] = f"{LOGS_DIR}: nothing was recorded, the log of rank {config.profiler.ranks[0]} says why"
    files |= {"hf": HF_DIR} if (run_dir / HF_DIR).exists() else {}
    for name, place in {**{name: str(run_dir / file) for name, file in files.items()}, **places}.items():
        _print(console, f"  {name:<9}{place}")
    _print(console, f"next: {_evaluation(run_dir, config)}")


def _some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _evaluation(run_dir: Path, config: Config) -> str:
    """What to type to evaluate the run. A stored run imports nothing by itself, and holds no objects."""
    own = list(own_targets("model", config.model))
    if any(target.startswith(OBJECT) for _, target in own):
        return f"trainer.evaluate({str(run_dir)!r}, model=...) from Python"
    return " ".join([f"python -m trainer eval run={run_dir}", *(f"{key}.{TARGET}={target}" for key, target in own)])


def _print(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is: never wrapped, with no part highlighted or read as markup."""
    console.print(Text(line, style), soft_wrap=True, highlight=False)


def _plain(value: object) -> str:
    """A fact as text: `name value, name value` for a mapping, members with commas for a list."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(member)}" for name, member in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(member) for member in value)
    return str(value)


def _best(name: str, lines: list[dict[str, Any]], config: Config) -> str:
    """The best value of a validation metric whose direction is known: the monitored one, and losses."""
    monitor = config.monitor
    if name != monitor.metric and not (name.startswith("val/") and "loss" in name):
        return ""
    values = [line[name] for line in lines if not math.isnan(line.get(name, math.nan))]
    if not values:
        return ""
    return _figure(max(values) if name == monitor.metric and monitor.mode == "max" else min(values))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plot_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Plot losses, other metrics of training and validation, learning rates and throughput over steps."""
    from matplotlib.figure import Figure

    panels = _panels(sorted({name for line in lines for name in line}))
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.0 * rows))
    # In inches around each panel, for ticks and titles; to measure them all takes as long as to draw the picture.
    left, right, bottom, top = 0.65, 0.15, 0.5, 0.35
    figure.subplots_adjust(
        left=left / (4.5 * columns),
        right=1 - right / (4.5 * columns),
        bottom=bottom / (3.0 * rows),
        top=1 - top / (3.0 * rows),
        wspace=(left + right) / (4.5 - left - right),
        hspace=(bottom + top) / (3.0 - bottom - top),
    )
    for number, (title, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), label=name.partition("/")[0], linewidth=1.2)
        if title in names:
            # A learning rate or throughput is read by its height, which an axis from another start would exaggerate.
            axes.set_ylim(bottom=0.0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _panels(names: list[str]) -> dict[str, list[str]]:
    """The metrics of each panel by its title: losses, other metrics of training and validation, rates."""
    measured = [name for name in names if name.startswith(("train/", "val/"))]
    measured.sort(key=lambda name: ("loss" not in name, name.partition("/")[2], name))
    panels: dict[str, list[str]] = {}
    for name in measured:
        panels.setdefault(name.partition("/")[2], []).append(name)
    for name in names:
        if name.startswith("optim/lr") or name == "perf/samples_per_s":
            panels[name] = [name]
    return panels
