"""What defines an experiment, its hash, and the name of its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from trainer.config.schema import Config


def identity(config: Config) -> dict[str, Any]:
    """What defines the experiment, not where or how it runs: two runs with the same identity give the same curve."""
    trainer = config.trainer
    return {
        "task": config_to_mapping(config.task),
        **{name: _without_locations(getattr(config, name)) for name in ("model", "data")},
        "optimizer": config_to_mapping(config.optimizer),
        "scheduler": config_to_mapping(config.scheduler),
        "global_size": config.batch.global_size,
        "seed": config.seed,
        "precision": trainer.precision,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "gradient_clip_val": trainer.gradient_clip_val,
        "limit_train_batches": trainer.limit_train_batches,
        "sync_batchnorm": trainer.sync_batchnorm,
        "patience": config.monitor.patience,
    }


def identity_hash(config: Config) -> str:
    """First eight hexadecimal digits of the identity's SHA-256."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(config: Config) -> str:
    """`run.name`, or <model>-<data>-<hash8>."""
    return config.run.name or f"{config.model.name}-{config.data.name}-{identity_hash(config)}"


def _without_locations(node: Any) -> dict[str, Any]:
    return {key: value for key, value in config_to_mapping(node).items() if key not in node.NOT_IDENTITY}


def config_to_mapping(node: Any) -> Any:
    """Plain containers again: what `config.yaml`, the hash and W&B take."""
    if is_dataclass(node) and not isinstance(node, type):
        return {field.name: config_to_mapping(getattr(node, field.name)) for field in fields(node)}
    if isinstance(node, (list, tuple)):
        return [config_to_mapping(value) for value in node]
    if isinstance(node, Mapping):
        return {str(key): config_to_mapping(value) for key, value in node.items()}
    return node
