"""Command line -> `Config`, through Hydra's Compose API.

hydra.main is not used: it exits with 1 instead of 2, changes the working directory, and makes a directory for every
process that starts from the command line, which under torchrun means one for each rank.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import MarkedYAMLError

from trainer.config.aliases import replace_aliases, replace_values
from trainer.config.callbacks import REPLACED_CALLBACKS
from trainer.config.debugging import apply_debugging
from trainer.config.own_parts import OWN_GROUPS, OWN_MEMBER, TARGET, is_own, open_own_nodes
from trainer.config.parsing import parse_config
from trainer.config.schema import Config
from trainer.config.secrets import literal_secrets, map_texts, note_variables, refer_to_environment
from trainer.config.yaml_limits import read_yaml_text
from trainer.errors import ConfigError, UserError, nearest, shown
from trainer.task import HOME, TaskSpec, find_tasks, get_task, is_plugin_loaded

HYDRA_PLUGINS = "hydra_plugins"
CONF = HOME / "conf"
# Groups whose files set keys of any node, and need no member.
RECIPES = ("experiment", "debug")
GLOBAL = "such a file begins with the line `# @package _global_`, and chooses as in `defaults: [override /task: cnn]`"
GROUPS = (
    "task", "model", "data", "optimizer", "scheduler", "strategy", "profiler", "logger", "callbacks", "launch",
    "sweep", "experiment", "debug",
)  # fmt: skip


def unless(other: Any, value: Any) -> Any:
    """An interpolation: a value that holds only while another one is null, as in ${unless:${.path},VALUE}."""
    return value if other is None else None


OmegaConf.register_new_resolver("unless", unless, replace=True)


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Hydra's grammar: key=value, +key=value, group=member. Raises: UserError: a word that it has no place for here."""
    overrides = []
    for word in words:
        try:
            (override,) = OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            raise UserError(f"{word}: not of the form key=value") from error
        _check_form(word, override)
        overrides.append(override)
    return overrides


def _check_form(word: str, override: Override) -> None:
    """Raises: UserError: the word is Hydra's, but has no meaning or another form here."""
    key = override.key_or_group
    if key.partition(".")[0].partition("/")[0] == "hydra":
        instead = "run.root=DIR and run.name=NAME say where a run is written" if key.endswith(".dir") else "see --help"
        raise UserError(f"{word}: Hydra only composes here, and its own settings have no effect; {instead}")
    if override.is_delete():
        advice = f"choose another member, as in {key}=NAME" if key in GROUPS else f"give it another value: {key}=VALUE"
        raise UserError(f"{word}: nothing can be deleted, since every key is needed; {advice}")
    if key in GROUPS and (override.is_add() or override.is_force_add()):
        raise UserError(f"{word}: write {word.lstrip('+')}")
    if key in GROUPS and not override.is_sweep_override() and not isinstance(override.value(), str | list):
        if _chooses_nothing(override):
            return
        raise UserError(f"{word}: takes the name of one {key}; possible: {', '.join(members_of(key))}")


def chosen_members(words: Sequence[str]) -> dict[str, str]:
    """The members of groups that the command line names, by group."""
    parsed = parse_overrides(replace_aliases(parse_overrides(words)))
    return {each.key_or_group: str(each.value()) for each in parsed if each.key_or_group in GROUPS}


def compose_mapping(words: Sequence[str], config_dirs: Sequence[Path] = ()) -> DictConfig:
    """Merge groups, recipes and overrides; only the existence of keys and members is checked.

    Args: words: overrides as typed. config_dirs: folders of the user's own groups.
    Raises: UserError: an unknown key, group or member, or a value that cannot be merged or resolved.
    """
    words = open_own_nodes(parse_overrides(replace_aliases(parse_overrides(words))))
    overrides = [each for each in parse_overrides(words) if not _chooses_nothing(each)]
    for override in overrides:
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line}: several values; with -m each of them becomes a run",
                f"-m {override.input_line} for a sweep, or [...] around a list",
            )
    tasks = find_tasks(plugins_of(overrides))
    folders = [*(str(folder) for folder in config_dirs), *(str(t.conf) for t in tasks.values() if t.conf)]
    for folder in config_dirs:
        if not folder.is_dir():
            raise UserError(f"--config-dir={folder}: no such directory")
        for file in folder.rglob("*.yaml"):
            read_yaml_text(file)
    search = [f"hydra.searchpath=[{','.join(f'file://{Path(folder).resolve()}' for folder in folders)}]"]
    with _own_hydra(), initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            lines = [str(override.input_line) for override in overrides]
            composed = compose("config", overrides=[*lines, *(search if folders else [])])
        except MissingConfigException as error:
            raise _missing_member(error, overrides) from error
        except (ConfigCompositionException, OmegaConfBaseException) as error:
            raise _bad_override(error, overrides) from error
        except MarkedYAMLError as error:
            raise _bad_yaml(error) from error
    for group in RECIPES:
        if group in composed:
            raise UserError(f"{group}: the file sets {group}.*; {GLOBAL}")
    # Of several such words the last one counts, and all of them are the user's own.
    named = [folder for each in overrides for folder in plugins_of([each])]
    _refuse_plugins_of_recipes(composed, named)
    return apply_debugging(_with_own_defaults(replace_values(composed)))


def _refuse_plugins_of_recipes(composed: DictConfig, named: Sequence[str]) -> None:
    """Raises: UserError: a file names a plugin that the command does not."""
    folders = composed.get("plugins")
    for folder in folders if isinstance(folders, Sequence) and not isinstance(folders, str) else ():
        if str(folder) not in named and not is_plugin_loaded(Path(str(folder))):
            advice = f"if you trust it, name it yourself: plugins=[{folder}]"
            raise UserError(f"plugins=[{folder}]: stands in a file, and a file imports no code by itself", advice)


def _chooses_nothing(override: Override) -> bool:
    return override.key_or_group in RECIPES and not override.is_sweep_override() and override.value() is None


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Compose beside an application of Hydra that calls the trainer: Hydra keeps its state in the process."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    # Hydra imports every module of this package, also from the working directory; here it only composes.
    plugins = sys.modules.get(HYDRA_PLUGINS)
    sys.modules[HYDRA_PLUGINS] = plugins or _empty_package(HYDRA_PLUGINS)
    try:
        yield
    finally:
        if plugins is None:
            del sys.modules[HYDRA_PLUGINS]
        if before is not None:
            GlobalHydra.instance().initialize(before)


def _empty_package(name: str) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = []
    return package


def _with_own_defaults(composed: DictConfig) -> DictConfig:
    """Add to nodes with `_target_` what they may leave out; the name of a part is that of its class."""
    for group in OWN_GROUPS:
        node = composed.get(group)
        if is_own(node):
            name = str(node[TARGET]).rpartition(".")[2]
            defaults = OmegaConf.load(CONF / group / f"{OWN_MEMBER}.yaml")
            with open_dict(composed):
                composed[group] = OmegaConf.merge({"name": name}, defaults, node)
    return composed


def plugins_of(overrides: Sequence[Override]) -> tuple[str, ...]:
    """The folders named by plugins=[...] on the command line, which must be known before the groups are merged."""
    for override in overrides:
        if override.key_or_group == "plugins":
            value = override.value()
            return tuple(str(folder) for folder in value) if isinstance(value, list) else (str(value),)
    return ()


def typed(mapping: DictConfig | Mapping[str, Any], chosen: Mapping[str, str] | None = None) -> tuple[Config, TaskSpec]:
    """Resolve interpolations and give every node its type.

    Args: chosen: members that the command line names, by group, for messages.
    Raises: UserError: an interpolation fails, there is no such task, or values are wrong (ConfigError, all at once).
    """
    read: set[str] = set()
    try:
        with _recording_environment(read):
            values: Any = OmegaConf.to_container(OmegaConf.create(mapping), resolve=True)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except OmegaConfBaseException as error:
        raise UserError(f"{getattr(error, 'full_key', '') or 'configuration'}: {_first_line(error)}") from error
    note_variables(read)
    plugins = values.get("plugins")
    if not isinstance(plugins, list) or not all(isinstance(folder, str) for folder in plugins):
        raise UserError(f"plugins={shown(plugins)}: must be a list, as in plugins=[FOLDER]")
    node = values.get("task")
    name = node.get("name") if isinstance(node, dict) else node
    task = get_task(str(name), plugins)
    return parse_config(values, task, chosen or {}), task


def compose_data(
    task: str, words: Sequence[str], config_dirs: Sequence[Path] = (), plugins: Sequence[str] = ()
) -> DictConfig:
    """The `data` node that `data=MEMBER data.KEY=VALUE` gives a task. Raises: UserError: as compose_mapping."""
    named = [f"plugins={json.dumps(list(plugins))}"] if plugins else []
    return compose_mapping([*named, f"task={task}", *words], config_dirs)["data"]


def compose_members(mapping: DictConfig) -> DictConfig:
    """What the members of another configuration give, without its other values.

    Args: mapping: a configuration. A member is known by the name in its node, which is that of its file, except where
        the task picks another file for that name by default.
    Returns: only the nodes without a group where the task itself has no file. Raises: UserError: there is no such task.
    """
    plugins = [str(folder) for folder in mapping.get("plugins") or ()]
    names = {group: OmegaConf.select(mapping, f"{group}.name") for group in GROUPS}
    own = get_task(str(names["task"]), plugins).conf
    folders = [folder for folder in (CONF, own) if folder is not None]
    if not any((folder / "task" / f"{names['task']}.yaml").exists() for folder in folders):
        plain: Any = OmegaConf.load(CONF / "config.yaml")
        del plain["defaults"]
        return plain
    words = [f"plugins={json.dumps(plugins)}", f"task={names['task']}"]
    composed = compose_mapping(words)
    for group, name in names.items():
        differs = name != OmegaConf.select(composed, f"{group}.name")
        if differs and any((folder / group / f"{name}.yaml").exists() for folder in folders):
            words.append(f"{group}={name}")
    return compose_mapping(words) if len(words) > 2 else composed


def without_secrets(mapping: DictConfig) -> Any:
    """Plain containers to be written to disk and to loggers.

    Interpolations are resolved, except where a value comes from the environment, directly, within a longer text or
    through another key: it may be a secret and stays a reference. A secret of the environment that the shell has put
    into a value becomes one.

    Raises: ConfigError: a secret stands there as it is.
    """
    raw = map_texts(OmegaConf.to_container(mapping, resolve=False), refer_to_environment)
    problems = list(literal_secrets(raw))
    if problems:
        raise ConfigError(problems)
    read: set[str] = set()
    with _recording_environment(read):
        return _written(OmegaConf.create(raw), raw, read)


@contextmanager
def _recording_environment(read: set[str]) -> Iterator[None]:
    """Note in `read` which variables are looked up by ${oc.env:...} meanwhile."""

    def env(key: str, *default: Any) -> str | None:
        read.add(key)
        return oc.env(key, *default)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _written(node: Any, raw: Any, read: set[str]) -> Any:
    """A container as it is written. Args: raw: the same one unresolved. read: names of variables, as recorded."""

    def value(key: Any) -> Any:
        """The reference where a variable of the environment was read, else the resolved value."""
        if isinstance(raw[key], (dict, list)):
            return _written(node[key], raw[key], read)
        if not isinstance(raw[key], str) or "${" not in raw[key]:
            return raw[key]
        read.clear()
        resolved = node[key]
        if OmegaConf.is_config(resolved):
            resolved = OmegaConf.to_container(resolved, resolve=True)
        return raw[key] if read else resolved

    return {key: value(key) for key in raw} if isinstance(raw, dict) else [value(index) for index in range(len(raw))]


def _missing_member(error: MissingConfigException, overrides: Sequence[Override]) -> UserError:
    # Hydra names neither file nor options where a list of members was given.
    missing = error.missing_cfg_file or str(error).partition("'")[2].partition("'")[0]
    group, _, member = missing.rpartition("/")
    options = error.options or members_of(group)
    if group == "callbacks" and member in REPLACED_CALLBACKS:
        return UserError(f"callbacks={member}: no callback here; {REPLACED_CALLBACKS[member]}")
    typed_values = [override.value() for override in overrides if override.key_or_group == group]
    if typed_values and not isinstance(typed_values[-1], list):
        member = str(typed_values[-1])
    if group not in GROUPS:
        return UserError(f"{group or member}: no such group of the configuration; {nearest(group, GROUPS)}")
    return UserError(f"{group}={member}: no such {group}; {nearest(member, options) if options else 'there are none'}")


def members_of(group: str) -> list[str]:
    """The members of a group in conf/."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def _bad_override(error: Exception, overrides: Sequence[Override]) -> UserError:
    """Name the override that Hydra could not apply, and the key that was probably meant."""
    keys = all_keys()
    for override in overrides:
        key = override.key_or_group
        unknown_group = key in GROUPS and "not in struct" in str(error)
        if f"'{key}'" in str(error) and (key not in keys or unknown_group):
            siblings = [k for k in keys if k.count(".") == key.count(".")] or keys
            return UserError(f"{override.input_line}: no such key; {_nearest_key(key, siblings, keys)}")
        if f"'{key}'" in str(error) and override.is_add() and key in keys:
            return UserError(
                f"{override.input_line}: the key exists already; write {(override.input_line or key).lstrip('+')}"
            )
        if f"'{key}'" in str(error):
            group = key.partition(".")[0]
            return UserError(f"{override.input_line}: the chosen {group} has no such key; others of {group}=... do")
    advice = [GLOBAL] if "Could not override" in str(error) or "appears more than once" in str(error) else []
    return UserError(f"configuration: {_first_line(error)}", *advice)


def _bad_yaml(error: MarkedYAMLError) -> UserError:
    mark = error.problem_mark
    where = f"{mark.name}, line {mark.line + 1}" if mark is not None else "configuration"
    return UserError(f"{where}: no valid YAML; {error.problem}")


def _nearest_key(key: str, siblings: Sequence[str], keys: Sequence[str]) -> str:
    parent, _, leaf = key.rpartition(".")
    family = [k.rpartition(".")[2] for k in siblings if k.rpartition(".")[0] == parent]
    if family:
        advice = nearest(leaf, family)
        return advice if not parent else f"{parent}: {advice}"
    return nearest(key, list(keys))


def all_keys() -> list[str]:
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
