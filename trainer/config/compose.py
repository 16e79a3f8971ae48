"""Command line -> `Config`, through Hydra's Compose API. Torch-free.

hydra.main is not used: it exits with 1 where we promise 2, changes the working directory, and leaves a directory for
every process that starts from the command line, which under torchrun means one a rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.parsing import parse_config
from trainer.config.schema import Config
from trainer.errors import UserError, nearest
from trainer.task import HOME, TaskSpec, find_tasks, get_task

CONF = HOME / "conf"
GROUPS = (
    "task", "model", "data", "optimizer", "scheduler", "strategy", "logger", "launch", "sweep", "experiment", "debug",
)  # fmt: skip
SECRET = re.compile(r"\$\{oc\.env:")


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Hydra's grammar: key=value, +key=value, group=member. Raises: UserError: a word is not of it."""
    overrides = []
    for word in words:
        try:
            overrides += OverridesParser.create().parse_overrides([word])
        except (OverrideParseException, HydraException) as error:
            raise UserError(f"{word}: not of the form key=value") from error
    return overrides


def compose_mapping(words: Sequence[str], config_dirs: Sequence[Path] = ()) -> DictConfig:
    """Merge groups, recipes and overrides; nothing is checked yet beyond the existence of keys and members.

    Args: words: overrides as typed. config_dirs: folders of the user's own groups.
    Raises: UserError: an unknown key, group or member, or a value that cannot be merged or resolved.
    """
    overrides = parse_overrides(words)
    tasks = find_tasks(plugins_of(overrides))
    folders = [*(str(folder) for folder in config_dirs), *(str(t.conf) for t in tasks.values() if t.conf)]
    for folder in config_dirs:
        if not folder.is_dir():
            raise UserError(f"--config-dir={folder}: no such directory")
    search = [f"hydra.searchpath=[{','.join(f'file://{Path(folder).resolve()}' for folder in folders)}]"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose("config", overrides=[*words, *(search if folders else [])])
        except MissingConfigException as error:
            raise _missing_member(error, overrides) from error
        except (ConfigCompositionException, OmegaConfBaseException) as error:
            raise _bad_override(error, overrides) from error


def plugins_of(overrides: Sequence[Override]) -> tuple[str, ...]:
    """The folders named by plugins=[...] on the command line, which must be known before the groups are merged."""
    for override in overrides:
        if override.key_or_group == "plugins":
            value = override.value()
            return tuple(str(folder) for folder in value) if isinstance(value, list) else (str(value),)
    return ()


def typed(mapping: DictConfig | Mapping[str, Any]) -> tuple[Config, TaskSpec]:
    """Resolve interpolations and give every node its type.

    Raises: UserError: an interpolation fails, there is no such task, or values are wrong (ConfigError, all at once).
    """
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(mapping), resolve=True)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except OmegaConfBaseException as error:
        raise UserError(f"{getattr(error, 'full_key', '') or 'configuration'}: {_first_line(error)}") from error
    node = values.get("task")
    name = node.get("name") if isinstance(node, dict) else node
    task = get_task(str(name), values.get("plugins") or ())
    return parse_config(values, task), task


def without_secrets(mapping: DictConfig) -> Any:
    """Plain containers with interpolations resolved, but environment variables left as references: they may be
    secrets, and the result is written to disk and to loggers."""
    raw = OmegaConf.to_container(mapping, resolve=False)
    resolved = OmegaConf.to_container(mapping, resolve=True)
    return _keep_references(raw, resolved)


def _keep_references(raw: Any, resolved: Any) -> Any:
    if isinstance(raw, dict) and isinstance(resolved, dict):
        return {key: _keep_references(raw[key], resolved[key]) for key in raw}
    if isinstance(raw, list) and isinstance(resolved, list):
        return [_keep_references(a, b) for a, b in zip(raw, resolved, strict=True)]
    return raw if isinstance(raw, str) and SECRET.search(raw) else resolved


def _missing_member(error: MissingConfigException, overrides: Sequence[Override]) -> UserError:
    group, _, member = (error.missing_cfg_file or "").rpartition("/")
    options = error.options or []
    for override in overrides:
        if override.key_or_group == group:
            member = str(override.value())
    if group not in GROUPS:
        return UserError(f"{group or member}: no such group of the configuration; {nearest(group, GROUPS)}")
    return UserError(f"{group}={member}: no such {group}; {nearest(member, options) if options else 'there are none'}")


def _bad_override(error: Exception, overrides: Sequence[Override]) -> UserError:
    """Name the override that Hydra could not apply, and the key that was probably meant."""
    keys = _all_keys()
    for override in overrides:
        key = override.key_or_group
        unknown_group = key in GROUPS and "not in struct" in str(error)
        if f"'{key}'" in str(error) and (key not in keys or unknown_group):
            siblings = [k for k in keys if k.count(".") == key.count(".")] or keys
            return UserError(f"{override.input_line}: no such key; {_nearest_key(key, siblings, keys)}")
        if f"'{key}'" in str(error):
            group = key.partition(".")[0]
            return UserError(f"{override.input_line}: the chosen {group} has no such key; others of {group}=... do")
    return UserError(f"configuration: {_first_line(error)}")


def _nearest_key(key: str, siblings: Sequence[str], keys: Sequence[str]) -> str:
    parent, _, leaf = key.rpartition(".")
    family = [k.rpartition(".")[2] for k in siblings if k.rpartition(".")[0] == parent]
    if family:
        advice = nearest(leaf, family)
        return advice if not parent else f"{parent}: {advice}"
    return nearest(key, list(keys))


def _all_keys() -> list[str]:
    """Dotted keys of the default configuration and of every group, for advice only."""
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                keys.append(f"{prefix}{name}")
                walk(child, f"{prefix}{name}.")

    for file in sorted(CONF.rglob("*.yaml")):
        group = file.parent.name
        node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        if isinstance(node, dict):
            node.pop("defaults", None)
        is_global = file.parent == CONF or "@package _global_" in file.read_text(encoding="utf-8")
        walk(node, "" if is_global else f"{group}.")
    return sorted({*keys, *GROUPS})


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
