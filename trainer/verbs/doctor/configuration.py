"""Whether the configuration fits this machine and launcher: what a run would refuse before it starts."""

from __future__ import annotations

from trainer.config.schema import Config
from trainer.config.validation import validate
from trainer.errors import ConfigError, UserError
from trainer.launch.discover import joined_world, plan_world, requested_world, submitted_world
from trainer.launch.submit import submits
from trainer.task import TaskSpec
from trainer.verbs.doctor.report import Finding, from_error, from_problem
from trainer.world import World

NAME = "configuration"


def find_world(config: Config) -> tuple[World, list[Finding]]:
    """The ranks of a run. Where they cannot start here: those that the configuration asks for, and the reasons.

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
    # As `plan` prints it. Inside a job, launch=slurm describes the job and not what this process would start.
    world = requested_world(trainer)
    return joined_world(world.accelerator, launch) or world, findings


def check_configuration(config: Config, task: TaskSpec, world: World) -> list[Finding]:
    """The problems that validation finds, or the ranks that would run."""
    try:
        validate(config, task, world)
    except ConfigError as error:
        return [from_problem(problem) for problem in error.problems]
    except UserError as error:
        return [from_error(NAME, error)]
    return [Finding("ranks", "ok", f"{world}, {config.strategy.name}, {config.trainer.precision}")]
