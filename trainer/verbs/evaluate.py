"""The verb eval: metrics of a run's best weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.config.validation import validate_evaluation
from trainer.run.files import EVALUATION_FILE, write_json
from trainer.verbs.prepare import PreparedRun
from trainer.verbs.stored_run import on_stored_run


def evaluate(words: Sequence[str]) -> int:
    """Evaluate a run. Args: words: run=DIR and overrides. Returns: exit code. Raises: UserError."""
    return on_stored_run("eval", words, evaluate_on_rank, validate_evaluation)


def evaluate_on_rank(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> None:
    """Metrics on the validation and test sets, to the terminal and eval.json."""
    from trainer.engine.build import build_trained

    data, module, trainer = build_trained(prepared.config, prepared.task, prepared.world, run_dir)
    metrics: dict[str, float] = {}
    if "val" in data.sets:
        trainer.validate(module, datamodule=data, verbose=False)
        metrics |= module.evaluated
    if "test" in data.sets:
        trainer.test(module, datamodule=data, verbose=False)
        metrics |= module.evaluated
    if prepared.world.rank == 0:
        write_json(run_dir / EVALUATION_FILE, metrics)
        table = Table("metric", "value")
        for name, value in sorted(metrics.items()):
            table.add_row(name, f"{value:.4f}")
        Console().print(table)
