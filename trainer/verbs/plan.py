"""The verb plan: what would run, on any number of devices, none of which need be here.

trainer.accelerator=auto plans for this machine, as a run would start here; trainer.accelerator=cuda plans for GPUs
elsewhere. Only a task that counts its networks' parameters imports torch, after everything is validated; nothing
imports Lightning or DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from trainer.config.compose import CONF
from trainer.config.identity import identity_hash
from trainer.config.own_parts import OwnSchedulerConfig
from trainer.config.schema import Config, StrategyConfig
from trainer.config.strategies import STRATEGIES, DeepSpeedFileConfig
from trainer.config.validation import validate
from trainer.errors import EXIT_DONE, ConfigError, counted
from trainer.estimate.memory import Memory, ModelSizes, estimate
from trainer.launch.discover import planned_world
from trainer.optim.lr_schedule import lr_factor
from trainer.verbs.prepare import PreparedRun, prepare, take_options
from trainer.world import World

UNITS = {"GiB": 2**30, "MiB": 2**20}
PLOT_WIDTH, PLOT_HEIGHT = 60, 6
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")


def plan(words: Sequence[str]) -> int:
    """Compose and validate, then print ranks, batch, steps, memory and the learning rate.

    Returns: exit code. Raises: UserError: the configuration is invalid on any machine.
    """
    options, overrides = take_options(words)
    prepared = prepare(overrides, options, planned_world)
    config, sizes = prepared.config, prepared.task.model_sizes(prepared.config)
    batch = batch_arithmetic(prepared, sizes)
    console = Console()
    console.print(_overview(prepared, sizes, batch))
    if sizes is not None:
        console.print(_memory(prepared, sizes, batch))
    console.print(_possible(prepared))
    for note in (*_notes(config, prepared.world), *(sizes.notes if sizes else ())):
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(_schedule(config, batch.total_steps), highlight=False, markup=False)
    return EXIT_DONE


def _notes(config: Config, world: World) -> Iterator[str]:
    """What surprises: several ranks that a machine without GPUs would run on its CPU."""
    if config.trainer.accelerator == "auto" and world.accelerator == "cpu" and world.world_size > 1:
        yield "no GPU is visible here: planned for the CPU; trainer.accelerator=cuda plans for GPUs elsewhere"


@dataclass(frozen=True)
class Batch:
    """The global batch on the ranks.

    share: samples of one rank. micro: samples of one forward pass. steps: optimizer steps; None where the size of the
    data is not known yet.
    """

    share: int
    micro: int
    steps_per_epoch: int | None
    total_steps: int | None

    @property
    def micro_steps(self) -> int:
        """Forward and backward passes of a rank in one step."""
        return self.share // self.micro


def batch_arithmetic(prepared: PreparedRun, sizes: ModelSizes | None) -> Batch:
    """How the global batch is split over ranks and micro-batches, and how many steps a run has."""
    config, trainer = prepared.config, prepared.config.trainer
    share = config.batch.global_size // prepared.world.world_size
    micro = min(config.batch.fixed_micro_size or share, share)
    per_epoch = None
    if sizes is not None and sizes.num_samples is not None:
        per_epoch = -(-sizes.num_samples // config.batch.global_size)
        limit = trainer.limit_train_batches
        per_epoch = int(per_epoch * limit) if isinstance(limit, float) else min(per_epoch, limit)
    by_epochs = per_epoch * trainer.max_epochs if per_epoch is not None and trainer.max_epochs is not None else None
    limits = [steps for steps in (by_epochs, trainer.max_steps) if steps is not None and steps != -1]
    # Where epochs have an unknown length, a number of epochs may end the run before max_steps.
    unknown = by_epochs is None and trainer.max_epochs is not None
    return Batch(share, micro, per_epoch, min(limits) if limits and not unknown else None)


def _overview(prepared: PreparedRun, sizes: ModelSizes | None, batch: Batch) -> Table:
    config, world = prepared.config, prepared.world
    table = Table(show_header=False)
    rows: Mapping[str, str] = {
        "task": f"{config.task.name}: {config.model.name} on {config.data.name}",
        "run": config.run.name or f"{config.model.name}-{config.data.name}-{identity_hash(config)}",
        "ranks": f"{world}, {config.strategy.name}",
        "global batch": f"{config.batch.global_size} = {counted(world.world_size, 'rank')} x "
        f"{counted(batch.micro_steps, 'micro-step')} x {batch.micro}",
        "steps": _steps(config, sizes, batch),
        "parameters": _parameters(sizes),
        "precision": config.trainer.precision,
        "optimizer": f"{config.optimizer.name}, lr {config.optimizer.lr:g}, {config.scheduler.name}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _steps(config: Config, sizes: ModelSizes | None, batch: Batch) -> str:
    if batch.steps_per_epoch is None or sizes is None:
        length = f"{config.trainer.max_epochs} epochs" if config.trainer.max_steps == -1 else "at most "
        length += "" if config.trainer.max_steps == -1 else f"{config.trainer.max_steps} steps"
        return f"{length}; the steps of an epoch are known once the data is read"
    per_epoch = f"{batch.steps_per_epoch} an epoch of {sizes.num_samples:,} samples"
    return f"{batch.total_steps:,} in all, {per_epoch}"


def _parameters(sizes: ModelSizes | None) -> str:
    if sizes is None:
        return "known once the data is read"
    by_network = ", ".join(f"{name} {count:,}" for name, count in sizes.parameters.items())
    parts = f" ({by_network})" if len(sizes.parameters) > 1 else ""
    frozen = f", {sizes.trained:,} trained" if sizes.trained != sizes.total else ""
    return f"{sizes.total:,}{parts}{frozen}"


def _memory(prepared: PreparedRun, sizes: ModelSizes, batch: Batch) -> Table:
    """Memory of each strategy at the configured precision."""
    config, ranks = prepared.config, prepared.world.world_size
    rows = {
        strategy.name: estimate(strategy, config.trainer.precision, config.optimizer, sizes, ranks, batch.micro)
        for strategy in _choices(config.strategy)
    }
    largest = max((memory.total for memory in rows.values() if memory is not None), default=0.0)
    unit, size = next(((unit, size) for unit, size in UNITS.items() if largest >= size), ("KiB", 2**10))
    table = Table(title=f"{unit} on each of {counted(ranks, 'device')}, estimated")
    table.add_column("strategy", no_wrap=True)
    for column in ("weights", "grads", "optim", "activ", "sum", "host"):
        table.add_column(column, no_wrap=True, justify="right")
    for name, memory in rows.items():
        table.add_row(_marked(name, config), *_scaled(memory, size))
    return table


def _possible(prepared: PreparedRun) -> Table:
    """The precisions that each strategy accepts, or the reason why it accepts none."""
    table = Table(title="what can be combined")
    table.add_column("strategy", no_wrap=True)
    table.add_column("precisions, or why not")
    for strategy in _choices(prepared.config.strategy):
        table.add_row(_marked(strategy.name, prepared.config), _verdict(prepared, strategy))
    return table


def _marked(name: str, config: Config) -> str:
    return f"[bold]{name} *[/bold]" if name == config.strategy.name else name


def _choices(chosen: StrategyConfig) -> Iterator[StrategyConfig]:
    """Every member of the group with the values of its file; the chosen one as configured."""
    for name, kind in STRATEGIES.items():
        if name == chosen.name:
            yield chosen
        elif kind is not DeepSpeedFileConfig and name != "auto":
            values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "strategy" / f"{name}.yaml"))
            yield kind(**values)


def _scaled(memory: Memory | None, unit: int) -> list[str]:
    if memory is None:
        return ["?"] * 6
    known = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total, memory.host)
    return ["?" if value is None else f"{value / unit:.2f}" for value in known]


def _verdict(prepared: PreparedRun, strategy: StrategyConfig) -> str:
    """The precisions that a strategy accepts, or the reason why it accepts none."""
    possible, reason = [], ""
    for precision in PRECISIONS:
        trainer = replace(prepared.config.trainer, precision=precision)
        config = replace(prepared.config, strategy=strategy, trainer=trainer)
        try:
            validate(config, prepared.task, prepared.world)
            possible.append(precision)
        except ConfigError as error:
            reason = reason or error.problems[0].advice
    return ", ".join(possible) or reason


def _schedule(config: Config, total_steps: int | None) -> str:
    """The learning rate over the run as a small plot. Schedules depend on the share of steps done, so few steps do."""
    if isinstance(config.scheduler, OwnSchedulerConfig):
        return f"learning rate: as {config.scheduler.target} says"
    rates = [config.optimizer.lr * lr_factor(config.scheduler, step, PLOT_WIDTH) for step in range(PLOT_WIDTH)]
    highest = max(rates)
    rows = []
    for level in range(PLOT_HEIGHT, 0, -1):
        threshold = highest * (level - 0.5) / PLOT_HEIGHT
        line = "".join("█" if rate >= threshold else " " for rate in rates)
        rows.append(f"{highest * level / PLOT_HEIGHT:>9.3g} │{line}")
    end = f"{total_steps:,}" if total_steps is not None else "last"
    axis = f"{'':9} └{'─' * PLOT_WIDTH}"
    return "\n".join(["learning rate by step", *rows, axis, f"{'':10} 1{end:>{PLOT_WIDTH - 1}}"])
