"""Whether the configuration fits this machine and launcher: what a run would refuse before it starts. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from trainer.config.schema import Config
from trainer.config.validation import validate
from trainer.errors import ConfigError, UserError
from trainer.launch.discover import joined_world, plan_world, planned_world, submitted_world
from trainer.launch.submit import submits
from trainer.task import TaskSpec
from trainer.verbs.doctor.report import Finding, from_error, from_problem
from trainer.world import World, num_visible_gpus

NAME = "configuration"


def find_world(config: Config) -> tuple[World, list[Finding]]:
    """The ranks of a run, and why they could not be started here; then they are those that were asked for.

    Raises: UserError: the numbers contradict each other on any machine.
    """
    trainer, launch = config.trainer, config.launch
    if submits(config):
        return submitted_world(trainer, launch), []
    try:
        return plan_world(trainer, launch), []
    except ConfigError as error:
        findings = [from_problem(problem) for problem in error.problems]
    except UserError as error:
        findings = [from_error(NAME, error)]
    accelerator = "cuda" if trainer.accelerator != "cpu" and _wants_gpus(config) else "cpu"
    joined = joined_world(accelerator, launch)
    if joined is not None:
        return joined, findings
    world = planned_world(trainer, launch)
    launcher = "single" if world.world_size == 1 else "elastic"
    return replace(world, launcher=launcher, accelerator=accelerator), findings


def _wants_gpus(config: Config) -> bool:
    return config.trainer.accelerator == "cuda" or num_visible_gpus() > 0


def check_configuration(config: Config, task: TaskSpec, world: World) -> list[Finding]:
    """What validation says of it, and what would run."""
    try:
        validate(config, task, world)
    except ConfigError as error:
        return [from_problem(problem) for problem in error.problems]
    except UserError as error:
        return [from_error(NAME, error)]
    ranks = f"{world.world_size} = {world.num_nodes} node(s) x {world.local_world_size}, {world.accelerator}"
    return [Finding("ranks", "ok", f"{ranks}, {config.strategy.name}, {config.trainer.precision}")]
