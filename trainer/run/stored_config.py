"""config.yaml of a run, as spawned ranks and the verbs on run directories read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from trainer.config.compose import typed
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.run.files import CONFIG_FILE
from trainer.task import TaskSpec

MISSING_KEY = object()


@dataclass(frozen=True)
class StoredConfig:
    """A run's configuration. mapping: as in config.yaml, environment variables as references."""

    config: Config
    mapping: dict[str, Any]
    task: TaskSpec


def read_stored_config(run_dir: Path, overrides: Sequence[str] = ()) -> StoredConfig:
    """Read config.yaml of a run. Args: overrides: key=value with dotted keys that the file has.

    Raises: UserError: the file cannot be read, or a key or value is wrong.
    """
    try:
        mapping = OmegaConf.load(run_dir / CONFIG_FILE)
    except OSError as error:
        raise UserError(f"run={run_dir}: no readable {CONFIG_FILE}") from error
    for word in overrides:
        key, _, value = word.partition("=")
        if OmegaConf.select(mapping, key, default=MISSING_KEY) is MISSING_KEY:
            raise UserError(f"{word}: no such key in {run_dir / CONFIG_FILE}")
        OmegaConf.update(mapping, key, yaml.safe_load(value))
    config, task = typed(mapping)  # pyright: ignore[reportArgumentType]
    plain: Any = OmegaConf.to_container(mapping, resolve=False)
    return StoredConfig(config, plain, task)
