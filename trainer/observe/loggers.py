"""The loggers of rank 0: metrics.jsonl always, and those that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from trainer.config.loggers import CSVLoggerConfig, MLflowLoggerConfig, TensorBoardLoggerConfig, WandbLoggerConfig
from trainer.config.own_parts import OwnLoggerConfig
from trainer.config.schema import Config, LoggerConfig
from trainer.observe.jsonl import JsonlLogger
from trainer.parts import build_part
from trainer.run.record import Record

MLFLOW_ID = "mlflow_id"  # in run.json


def build_loggers(config: Config, mapping: Mapping[str, Any], record: Record) -> list[Logger]:
    """Called on rank 0. Args: mapping: the configuration as written to config.yaml.

    Raises: UserError: a logger of the user's own cannot be built.
    """
    named = [_build(name, node, mapping, record) for name, node in config.logger.items()]
    return [JsonlLogger(record.directory), *named]


def _build(name: str, config: LoggerConfig, mapping: Mapping[str, Any], record: Record) -> Logger:
    run_dir = record.directory
    if isinstance(config, WandbLoggerConfig):
        from trainer.observe.wandb import build_wandb_logger

        return build_wandb_logger(config, mapping, record)
    if isinstance(config, CSVLoggerConfig):
        return CSVLogger(run_dir, name="csv")
    if isinstance(config, TensorBoardLoggerConfig):
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(run_dir, name="tensorboard", version="")
    if isinstance(config, MLflowLoggerConfig):
        return _build_mlflow_logger(config, record)
    assert isinstance(config, OwnLoggerConfig)
    return build_part(f"logger.{name}", config, Logger, {"run_dir": run_dir, "save_dir": run_dir})


def _build_mlflow_logger(config: MLflowLoggerConfig, record: Record) -> Logger:
    """Begin an MLflow run and record its id, or continue the recorded one."""
    from pytorch_lightning.loggers import MLFlowLogger

    uri = config.tracking_uri or f"sqlite:///{record.directory.absolute()}/mlflow.db"
    logger = MLFlowLogger(
        config.experiment, run_name=record.directory.name, tracking_uri=uri, run_id=record.read().get(MLFLOW_ID)
    )
    record.update(**{MLFLOW_ID: logger.run_id})
    return logger


def finish_loggers(loggers: Sequence[Logger], exit_code: int, model_file: Path | None) -> dict[str, str]:
    """End W&B's run; the others end with Lightning's Trainer. Returns: where each shows the run, by its name."""
    places = {}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            from trainer.observe.wandb import StepLogger, finish_wandb

            if isinstance(logger, StepLogger):
                places["W&B"] = finish_wandb(logger, exit_code, finished=model_file is not None)
        elif not isinstance(logger, JsonlLogger) and logger.log_dir is not None:
            places[str(logger.name)] = str(logger.log_dir)
    return places
