"""The verb plan: what would run, on what, without running it. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from trainer.errors import EXIT_DONE
from trainer.fit import Options, prepare
from trainer.run import identity_hash


def plan(overrides: Sequence[str], options: Options) -> int:
    """Compose and validate, then show ranks, batch arithmetic and the run's name. Returns: exit code."""
    prepared = prepare(overrides, options)
    config, world = prepared.config, prepared.world
    share = config.batch.global_size // world.world_size
    micro = min(config.batch.micro_size or share, share)
    length = (
        f"{config.trainer.max_epochs} epochs" if config.trainer.max_steps == -1 else f"{config.trainer.max_steps} steps"
    )
    table = Table(show_header=False)
    for name, value in (
        ("task", f"{config.task.name}: {config.model.name} on {config.data.name}"),
        ("run", config.run.name or f"{config.model.name}-{config.data.name}-{identity_hash(config)}"),
        ("ranks", f"{world.world_size} on {world.num_nodes} node(s), {world.accelerator}, {config.strategy.name}"),
        (
            "global batch",
            f"{config.batch.global_size} = {world.world_size} ranks x {share // micro} micro-steps x {micro}",
        ),
        ("precision", config.trainer.precision),
        ("optimizer", f"{config.optimizer.name}, lr {config.optimizer.lr:g}, {config.scheduler.name}"),
        ("length", length),
    ):
        table.add_row(name, value)
    Console().print(table)
    return EXIT_DONE
