"""eval and predict: a trained run applied again. The rank's side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_model

from trainer.config import Config
from trainer.data.module import DataModule
from trainer.engine import MODEL_FILE, build, build_trainer
from trainer.errors import ConfigError, Problem, UserError, nearest
from trainer.launch.world import World
from trainer.module import TrainingModule
from trainer.run import write_json
from trainer.task import TaskSpec

EVALUATION_FILE = "eval.json"


def load_trained(config: Config, task: TaskSpec, world: World, run_dir: Path) -> tuple[DataModule, TrainingModule]:
    """Data and networks with the run's final weights. Raises: UserError: the run has none yet."""
    weights = run_dir / MODEL_FILE
    if not weights.exists():
        raise UserError(
            f"run={run_dir}: no {MODEL_FILE} yet", "the run is not finished; the line that began it resumes it"
        )
    data, module = build(config, task, world)
    load_model(module, str(weights))
    return data, module


def evaluate(config: Config, task: TaskSpec, world: World, run_dir: Path, arguments: Sequence[str]) -> None:
    """Metrics of the run's weights on its validation and test sets, to the terminal and eval.json."""
    data, module = load_trained(config, task, world, run_dir)
    trainer = build_trainer(config, world, run_dir, [], [])
    metrics: dict[str, float] = {}
    if "val" in data.sets:
        trainer.validate(module, datamodule=data, verbose=False)
        metrics |= module.evaluated
    if "test" in data.sets:
        trainer.test(module, datamodule=data, verbose=False)
        metrics |= module.evaluated
    if world.rank == 0:
        write_json(run_dir / EVALUATION_FILE, metrics)
        table = Table("metric", "value")
        for name, value in sorted(metrics.items()):
            table.add_row(name, f"{value:.4f}")
        Console().print(table)


def predict(config: Config, task: TaskSpec, world: World, run_dir: Path, arguments: Sequence[str]) -> None:
    """The task's own prediction, with its own arguments."""
    parsed = parse_arguments(task, [word for word in arguments if "." not in word.partition("=")[0]])
    data, module = load_trained(config, task, world, run_dir)
    build_trainer(config, world, run_dir, [], [])
    device = next(module.parameters()).device
    module.eval().to(device)
    task.run_predict(config, module, data, parsed, run_dir)


def parse_arguments(task: TaskSpec, words: Sequence[str]) -> Any:
    """key=value words as the task's predict_arguments. Raises: ConfigError: a wrong key or value."""
    if task.predict_arguments is None:
        raise UserError(f"task={task.name} has no predict")
    values = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}
    fields = list(getattr(task.predict_arguments, "__dataclass_fields__", {}))
    problems = [Problem(key, values[key], nearest(key, fields)) for key in values if key not in fields]
    if problems:
        raise ConfigError(problems)
    try:
        return TypeAdapter(task.predict_arguments).validate_json(json.dumps(values))
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ConfigError(
            [Problem(str(d["loc"][0]), values.get(str(d["loc"][0])), d["msg"]) for d in details]
        ) from error


VERBS: Mapping[str, Callable[[Config, TaskSpec, World, Path, Sequence[str]], None]] = {
    "eval": evaluate,
    "predict": predict,
}
