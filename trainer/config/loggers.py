"""Schemas of the `logger` group, whose members work together: logger=[wandb,csv]."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Literal

from trainer.config.credentials import has_wandb_key
from trainer.config.schema import Config, LoggerConfig, settings
from trainer.errors import Problem


@settings
class WandbLoggerConfig(LoggerConfig):
    """Weights & Biases: one run on rank 0."""

    project: str
    """W&B project."""
    entity: str | None
    """W&B team or user; null takes the account's default."""
    group: str | None
    """W&B group; null leaves the run ungrouped."""
    tags: list[str]
    """W&B tags."""
    notes: str | None
    """Free text shown with the run."""
    mode: Literal["auto", "online", "offline"]
    """auto is online when a key and a route to the server exist, else offline."""


@settings
class CSVLoggerConfig(LoggerConfig):
    """A table for each attempt, csv/version_N/metrics.csv in the run directory."""


@settings
class TensorBoardLoggerConfig(LoggerConfig):
    """TensorBoard's event files, in tensorboard/ of the run directory."""


@settings
class MLflowLoggerConfig(LoggerConfig):
    """One MLflow run, which a resumed run continues."""

    tracking_uri: str | None
    """Server or database; null is mlflow.db in the run directory."""
    experiment: str
    """MLflow experiment."""


LOGGERS: Mapping[str, type[LoggerConfig]] = {
    "csv": CSVLoggerConfig,
    "mlflow": MLflowLoggerConfig,
    "tensorboard": TensorBoardLoggerConfig,
    "wandb": WandbLoggerConfig,
}
# Keys of the logger node when it held W&B's alone; they are still accepted.
FLAT_KEYS = ("project", "entity", "group", "tags", "notes", "mode")


def nested(node: Mapping[str, object]) -> dict[str, object]:
    """A logger node of an earlier version, {name: wandb, project: ...}, as one by name."""
    settings = {key: value for key, value in node.items() if key != "name"}
    return {} if node["name"] == "none" else {str(node["name"]): settings}


def wandb_of(config: Config) -> WandbLoggerConfig | None:
    """W&B's settings; None where it is not among the loggers."""
    return next((each for each in config.logger.values() if isinstance(each, WandbLoggerConfig)), None)


def logger_problems(config: Config) -> Iterator[Problem]:
    """Packages that are not installed, and W&B without a key."""
    for name, node in config.logger.items():
        if type(node) in LOGGERS.values() and name != "csv" and importlib.util.find_spec(name) is None:
            advice = (
                f"the package {name} is not installed: pip install 'hydra-lightning-trainer[{name}]', or leave it out"
            )
            yield Problem("logger", name, advice)
    wandb = wandb_of(config)
    if wandb is not None and wandb.mode == "online" and not has_wandb_key():
        advice = "no W&B key: `wandb login`, set WANDB_API_KEY, or use offline"
        yield Problem("logger.wandb.mode", "online", advice)
