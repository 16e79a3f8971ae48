"""From words to a checked configuration and its world: the first part of fit, plan, doctor and a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.compose import chosen_members, compose_mapping, typed, without_secrets
from trainer.config.own_parts import find_targets, target_words
from trainer.config.schema import Config, LaunchConfig, TrainerConfig
from trainer.config.validation import validate
from trainer.config.versions import refuse_bad_versions
from trainer.errors import UserError
from trainer.launch.discover import plan_world, submitted_world
from trainer.launch.submit import submits
from trainer.parts import trust
from trainer.run.init_source import with_source
from trainer.task import TaskSpec
from trainer.world import World

OPTIONS = ("--cfg", "--package", "--config-dir", "--multirun")
SHORT = {"-c": "--cfg", "-p": "--package", "-cd": "--config-dir", "-m": "--multirun"}
# Options of Hydra's own command line that have no meaning here, and what does their work.
HYDRA_OPTIONS = {
    "--info": "--cfg job prints the composed configuration, --help the groups, and the verb plan what would run",
    "-i": "see --cfg job, --help and the verb plan",
    "--resolve": "--cfg job resolves all values but those of the environment, which may be secrets",
    "--run": "training is what happens without a verb",
    "-r": "training is what happens without a verb",
    "--hydra-help": "--help describes this command",
    "--config-name": "use experiment=NAME, with --config-dir=DIR for a folder of your own",
    "-cn": "use experiment=NAME, with --config-dir=DIR for a folder of your own",
    "--config-path": "use --config-dir=DIR",
    "-cp": "use --config-dir=DIR",
    "--shell-completion": 'eval "$(trainer completion)" installs it in bash',
    "-sc": 'eval "$(trainer completion)" installs it in bash',
    "--experimental-rerun": "the same command resumes an unfinished run",
}


@dataclass
class Options:
    """What stands on the command line besides overrides.

    package: the node that --cfg prints; empty for all of it.
    """

    config_dirs: list[Path] = field(default_factory=list)
    print_config: bool = False
    package: str = ""
    multirun: bool = False

    def as_words(self) -> list[str]:
        """The options that another process needs to compose the same configuration."""
        return [f"--config-dir={folder.resolve()}" for folder in self.config_dirs]


def take_options(words: Sequence[str]) -> tuple[Options, list[str]]:
    """Split a command line. Returns: (options, overrides). Raises: UserError: there is no such option."""
    return parse_options(words, OPTIONS)


def parse_options(words: Sequence[str], accepted: Sequence[str]) -> tuple[Options, list[str]]:
    """Split the words of a verb that takes only some options. Returns: (options, other words).

    Raises: UserError: the verb has no such option, or its value is missing or wrong.
    """
    options, others, rest = Options(), [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            others.append(word)
            continue
        if name in HYDRA_OPTIONS:
            raise UserError(f"{word}: an option of Hydra's own command line; {HYDRA_OPTIONS[name]}")
        full = SHORT.get(name, name)
        if equals and full not in accepted and word.startswith("--"):
            raise UserError(f"{word}: no such option; a key is written without dashes, as in {word.lstrip('-')}")
        if full not in accepted:
            raise UserError(f"{word}: no such option; possible: {', '.join((*accepted, '--help'))}")
        if full == "--multirun":
            options.multirun = True
            continue
        if not equals:
            value = rest.pop(0) if rest else ""
        if not value:
            raise UserError(f"{word}: needs a value")
        _set_option(options, full, value)
    return options, others


def _set_option(options: Options, name: str, value: str) -> None:
    if name == "--config-dir":
        options.config_dirs.append(Path(value))
    elif name == "--package":
        options.package = value
    elif value == "job":
        options.print_config = True
    elif value in ("hydra", "all"):
        advice = "Hydra only composes here, and its own settings (hydra.*) have no effect; possible: --cfg job"
        raise UserError(f"--cfg {value}: {advice}")
    else:
        raise UserError(f"--cfg {value}: possible: --cfg job")


@dataclass(frozen=True)
class PreparedRun:
    """A checked configuration and its world.

    mapping: as written to config.yaml, secrets as references. own_words: what another process of the same command needs
    to import the user's own parts.
    """

    config: Config
    mapping: dict[str, Any]
    task: TaskSpec
    world: World
    own_words: Sequence[str] = ()


def prepare(
    overrides: Sequence[str], options: Options, find_world: Callable[[TrainerConfig, LaunchConfig], World] | None = None
) -> PreparedRun:
    """Everything that can be known before torch is imported.

    Args: find_world: gives the world to plan for; None is the one that would run here.
    Raises: UserError: any error of the user's in the configuration.
    """
    refuse_bad_versions()
    composed = compose_mapping(overrides, options.config_dirs)
    config, task = typed(composed, chosen_members(overrides))
    find_world = find_world or (submitted_world if submits(config) else plan_world)
    world = find_world(config.trainer, config.launch)
    validate(config, task, world)
    config, mapping = with_source(config, without_secrets(composed))
    trust(dict(find_targets(mapping)).values(), options.config_dirs)
    return PreparedRun(config, mapping, task, world, [*options.as_words(), *target_words(mapping)])
