"""From words to a checked configuration and its world: what fit, plan, doctor and sweep begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.compose import compose_mapping, typed, without_secrets
from trainer.config.schema import Config, LaunchConfig, TrainerConfig
from trainer.config.validation import validate
from trainer.errors import UserError
from trainer.launch.discover import plan_world, submitted_world
from trainer.launch.submit import submits
from trainer.task import TaskSpec
from trainer.world import World


@dataclass
class Options:
    """What stands on the command line beside overrides."""

    config_dirs: list[Path] = field(default_factory=list)
    print_config: bool = False
    multirun: bool = False

    def as_words(self) -> list[str]:
        """The options that another process needs to compose the same configuration."""
        return [f"--config-dir={folder.resolve()}" for folder in self.config_dirs]


def take_options(words: Sequence[str]) -> tuple[Options, list[str]]:
    """Split a command line. Returns: (options, overrides). Raises: UserError: there is no such option."""
    options, overrides, rest = Options(), [], list(words)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if word in ("-m", "--multirun"):
            options.multirun = True
        elif name in ("--cfg", "-c", "--config-dir", "-cd"):
            value = value or (rest.pop(0) if rest else "")
            if name in ("--config-dir", "-cd"):
                options.config_dirs.append(Path(value))
            elif value == "job":
                options.print_config = True
            else:
                raise UserError(f"{name} {value}: possible: {name} job")
        elif word.startswith("-"):
            raise UserError(f"{word}: no such option; possible: --cfg job, --config-dir DIR, -m, --help")
        else:
            overrides.append(word)
    return options, overrides


@dataclass(frozen=True)
class PreparedRun:
    """A checked configuration and its world. mapping: as written to config.yaml, secrets as references."""

    config: Config
    mapping: dict[str, Any]
    task: TaskSpec
    world: World


def prepare(
    overrides: Sequence[str], options: Options, find_world: Callable[[TrainerConfig, LaunchConfig], World] | None = None
) -> PreparedRun:
    """Everything that can be known before torch is imported. Args: find_world: instead of the one that would run here.

    Raises: UserError: any mistake.
    """
    composed = compose_mapping(overrides, options.config_dirs)
    config, task = typed(composed)
    find_world = find_world or (submitted_world if submits(config) else plan_world)
    world = find_world(config.trainer, config.launch)
    validate(config, task, world)
    return PreparedRun(config, without_secrets(composed), task, world)
