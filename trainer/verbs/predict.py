"""The verb predict: apply a run's model to new input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import EXIT_DONE, UserError
from trainer.task import TaskSpec
from trainer.verbs.arguments import typed_arguments
from trainer.verbs.prepare import PreparedRun
from trainer.verbs.stored_run import on_stored_run


def predict(words: Sequence[str]) -> int:
    """Apply a run. Args: words: run=DIR, overrides, the task's arguments. Returns: exit code. Raises: UserError."""
    on_stored_run("predict", words, predict_on_rank)
    return EXIT_DONE


def predict_on_rank(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> str | None:
    """Load the model and let it predict. Nothing of the training data is read.

    Returns: where the result is; None on other ranks than 0, and where it is only printed.
    """
    from trainer.engine.build import rank_device

    task = prepared.task
    parsed = parse_arguments(task, arguments)
    place = task.load_inference(prepared.config, run_dir, rank_device(prepared.world)).predict(parsed, run_dir)
    return None if place is None else str(place)


def parse_arguments(task: TaskSpec, words: Sequence[str]) -> Any:
    """key=value words as the task's predict_arguments. Raises: ConfigError: a wrong key or value."""
    if task.predict_arguments is None:
        raise UserError(f"task={task.name} has no predict")
    return typed_arguments(task.predict_arguments, words)
