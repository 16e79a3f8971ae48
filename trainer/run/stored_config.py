"""config.yaml of a run, as spawned ranks and the verbs on run directories read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from trainer.config.compose import GROUPS, compose_members, parse_overrides, plugins_of, typed
from trainer.config.groups import NAMED_GROUPS
from trainer.config.loggers import nested
from trainer.config.profilers import LIGHTNING_NAMES
from trainer.config.schema import Config
from trainer.config.yaml_limits import read_yaml_text
from trainer.errors import UserError
from trainer.run.files import CONFIG_FILE, refuse_links_outside
from trainer.task import TaskSpec, find_tasks, is_plugin_loaded

MISSING_KEY = object()


@dataclass(frozen=True)
class StoredConfig:
    """A run's configuration. mapping: as in config.yaml, with references to the environment unresolved."""

    config: Config
    mapping: dict[str, Any]
    task: TaskSpec


def read_stored_config(
    run_dir: Path, overrides: Sequence[str] = (), nodes: Mapping[str, DictConfig] | None = None
) -> StoredConfig:
    """Read config.yaml of a run.

    A stored run imports no code by itself: the folders that its `plugins` names are used only if `overrides` repeat
    them, or this process has imported them already. A run that is older than a key takes the value that conf/ gives it.

    Args: overrides: key=value with existing keys. nodes: whole nodes to replace first, such as `data`.
    Raises: UserError: the file cannot be read, a key or value is wrong, or the run needs a plugin.
    """
    refuse_links_outside(run_dir)
    mapping = _load(run_dir)
    stored_plugins = [str(folder) for folder in mapping.get("plugins") or ()]
    parsed = parse_overrides(overrides)
    loaded = [folder for folder in stored_plugins if is_plugin_loaded(Path(folder))]
    mapping["plugins"] = list(plugins_of(parsed)) or loaded
    _check_plugins(run_dir, mapping, stored_plugins)
    mapping = _with_defaults(mapping)
    for name, node in (nodes or {}).items():
        mapping[name] = node
    for override in parsed:
        key = override.get_key_element()
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: one value is possible here")
        if OmegaConf.select(mapping, key, default=MISSING_KEY) is MISSING_KEY:
            raise UserError(f"{override.input_line}: no such key in {run_dir / CONFIG_FILE}")
        OmegaConf.update(mapping, key, override.value())
    config, task = typed(mapping)
    plain: Any = OmegaConf.to_container(mapping, resolve=False)
    return StoredConfig(config, plain, task)


def plugins_word(folders: Sequence[str]) -> list[str]:
    """The override that repeats plugins to another process; empty where there are none."""
    return [f"plugins={json.dumps(list(folders))}"] if folders else []


def _load(run_dir: Path) -> DictConfig:
    try:
        mapping = OmegaConf.create(read_yaml_text(run_dir / CONFIG_FILE))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"run={run_dir}: no readable {CONFIG_FILE}") from error
    if not isinstance(mapping, DictConfig):
        raise UserError(f"run={run_dir}: {CONFIG_FILE} is not a configuration")
    if "name" in (mapping.get("logger") or {}):
        mapping["logger"] = nested(mapping["logger"])
    if "profiler" in (mapping.get("trainer") or {}):
        # Before profilers were a group: a value of Lightning's.
        name = str(mapping["trainer"].pop("profiler") or "null")
        mapping["profiler"] = {"name": LIGHTNING_NAMES.get(name, name)}
    return mapping


def _with_defaults(mapping: DictConfig) -> DictConfig:
    """The mapping, and for keys that it lacks what composing its members gives today."""
    stored: Any = OmegaConf.to_container(mapping, resolve=False)
    composed = compose_members(mapping)
    defaults: Any = OmegaConf.to_container(composed, resolve=False)
    for group in GROUPS:
        name, other = (OmegaConf.select(each, f"{group}.name") for each in (mapping, composed))
        if group in stored and name != other:
            defaults.pop(group, None)  # a member without a file: these are the defaults of another one
    for group in NAMED_GROUPS:
        if group in stored:
            defaults.pop(group, None)  # these are of other members
    filled: Any = OmegaConf.create(_filled(stored, defaults))
    return filled


def _filled(stored: Any, defaults: Any) -> Any:
    if not isinstance(stored, dict) or not isinstance(defaults, dict):
        return stored
    return {**defaults, **{key: _filled(value, defaults.get(key)) for key, value in stored.items()}}


def _check_plugins(run_dir: Path, mapping: DictConfig, stored_plugins: Sequence[str]) -> None:
    """Raises: UserError: the run's task comes from a plugin that was not repeated."""
    missing = [folder for folder in stored_plugins if folder not in mapping["plugins"]]
    name = OmegaConf.select(mapping, "task.name")
    if missing and name not in find_tasks(tuple(mapping["plugins"])):
        raise UserError(
            f"run={run_dir}: its task {name} is a plugin, and a stored run imports no code by itself",
            f"if you trust it, repeat it: plugins=[{','.join(missing)}]",
        )
