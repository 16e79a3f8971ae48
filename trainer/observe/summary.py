"""What the user reads: where a run stands at its start, and the table at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.config.schema import Config
from trainer.run.files import CURVES_FILE, METRICS_FILE, MODEL_FILE
from trainer.run.metrics_file import read_metrics
from trainer.world import World


def print_start(
    console: Console, run_dir: Path, config: Config, world: World, facts: Mapping[str, Any], checkpoint: Path | None
) -> None:
    """One short paragraph: directory, data, ranks, and whether this is a resumption."""
    console.print(f"[bold]{escape(str(run_dir))}[/bold]")
    num_parameters = sum(facts["model"]["num_parameters"].values())
    where = f"{world.world_size} rank(s), {world.accelerator}, {config.trainer.precision}"
    console.print(f"{config.model.name} ({num_parameters:,} parameters) on {config.data.name}; {where}")
    for name, value in facts["data"].items():
        console.print(f"  {name}: {escape(str(value))}", highlight=False, soft_wrap=True)
    if checkpoint is not None:
        console.print(f"resuming after {checkpoint.name}")


def print_summary(
    console: Console, run_dir: Path, config: Config, training_s: float, places: Mapping[str, str]
) -> None:
    """Final metrics, where everything is, and what to type next; the curves go into a picture.

    Args: places: where services show the run, by the service's name.
    """
    lines = read_metrics(run_dir)
    latest: dict[str, float] = {}
    for line in lines:
        latest |= {name: value for name, value in line.items() if name != "step"}
    table = Table("metric", "last", "best", title=escape(str(run_dir)))
    for name in sorted(latest):
        if name.startswith(("train/", "val/", "test/", "perf/")):
            table.add_row(name, _figure(latest[name]), _best(name, lines, config))
    console.print(table)
    plot_curves(lines, run_dir / CURVES_FILE)
    console.print(f"{training_s:.1f} s of training; seed {config.seed}")
    files = {"curves": CURVES_FILE, "metrics": METRICS_FILE, "model": MODEL_FILE}
    shown = {**{name: str(run_dir / file) for name, file in files.items()}, **places}
    for name, place in shown.items():
        console.print(f"  {name:<9}{escape(place)}", highlight=False, soft_wrap=True)
    console.print(f"next: python -m trainer eval run={escape(str(run_dir))}", highlight=False, soft_wrap=True)


def _best(name: str, lines: list[dict[str, Any]], config: Config) -> str:
    if name != config.monitor.metric:
        return ""
    values = [line[name] for line in lines if name in line]
    return _figure(max(values) if config.monitor.mode == "max" else min(values))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plot_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Loss, the other metrics of train and val, rate of learning and throughput over steps, one panel each."""
    from matplotlib.figure import Figure

    panels = _panels(sorted({name for line in lines for name in line}))
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.0 * rows), layout="constrained")
    for number, (title, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), label=name.partition("/")[0], linewidth=1.2)
        if title in names:
            # A rate alone in its panel is read by its height, which an axis that begins elsewhere would exaggerate.
            axes.set_ylim(bottom=0.0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _panels(names: list[str]) -> dict[str, list[str]]:
    """Which metrics share a panel, by its title: losses first, then what else was learnt, then how."""
    learnt = [name for name in names if name.startswith(("train/", "val/"))]
    learnt.sort(key=lambda name: ("loss" not in name, name.partition("/")[2], name))
    panels: dict[str, list[str]] = {}
    for name in learnt:
        panels.setdefault(name.partition("/")[2], []).append(name)
    for name in names:
        if name.startswith("optim/lr") or name == "perf/samples_per_s":
            panels[name] = [name]
    return panels
