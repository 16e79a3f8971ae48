"""The verb predict: apply a run's model to new input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from trainer.errors import EXIT_DONE, ConfigError, Problem, UserError, nearest
from trainer.task import TaskSpec
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
    texts = {key: text for key, _, text in (word.partition("=") for word in words)}
    fields = list(getattr(task.predict_arguments, "__dataclass_fields__", {}))
    problems = [Problem(key, texts[key], nearest(key, fields)) for key in texts if key not in fields]
    if problems:
        raise ConfigError(problems)
    values = {key: _value(text) for key, text in texts.items()}
    wrong = _errors(task.predict_arguments, values)
    # A text that YAML takes for something else, such as a file called 2024 or the word null.
    values |= {key: texts[key] for key in wrong if key in texts}
    wrong = _errors(task.predict_arguments, values)
    if wrong:
        raise ConfigError([Problem(key, texts.get(key), message) for key, message in wrong.items()])
    return TypeAdapter(task.predict_arguments).validate_json(json.dumps(values, default=str))


def _errors(schema: type[Any], values: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each argument."""
    try:
        TypeAdapter(schema).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        return {str(detail["loc"][0]): detail["msg"] for detail in error.errors(include_url=False)}
    return {}


def _value(text: str) -> Any:
    """A value as YAML, or as it is where it is none, such as a comma."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
