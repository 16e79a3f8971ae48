"""What the verbs do before a rank exists: compose, validate, open the run, start or join ranks. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.compose import compose_mapping, typed, without_secrets
from trainer.config import Config, LaunchConfig, SlurmLaunchConfig, TrainerConfig
from trainer.errors import EXIT_BUG, EXIT_DONE, EXIT_STOPPED, UserError
from trainer.faults.signals import STOP_FILE, asked_to_stop, stop_before_training
from trainer.launch.agent import RankFailure, start_nodes, start_ranks
from trainer.launch.world import World, node_range, plan_world, submitted_world
from trainer.run import Record, Run, open_run
from trainer.task import TaskSpec
from trainer.validation import validate


@dataclass
class Options:
    """What stands on the command line beside overrides."""

    config_dirs: list[Path] = field(default_factory=list)
    print_config: bool = False
    multirun: bool = False


def take_options(words: Sequence[str]) -> tuple[Options, list[str]]:
    """Split a command line. Returns: (options, overrides). Raises: UserError: an option there is not."""
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
class Plan:
    """A checked configuration and the world it is for. mapping: as written to config.yaml, secrets as references."""

    config: Config
    mapping: dict[str, Any]
    task: TaskSpec
    world: World


def prepare(
    overrides: Sequence[str], options: Options, find_world: Callable[[TrainerConfig, LaunchConfig], World] | None = None
) -> Plan:
    """Everything that can be known before torch is imported. Args: find_world: instead of the one that would run here.

    Raises: UserError: any mistake.
    """
    composed = compose_mapping(overrides, options.config_dirs)
    config, task = typed(composed)
    find_world = find_world or (submitted_world if submits(config) else plan_world)
    world = find_world(config.trainer, config.launch)
    validate(config, task, world)
    return Plan(config, without_secrets(composed), task, world)


def submits(config: Config) -> bool:
    """Whether the line becomes a batch job: SLURM is asked for, and this is not the job itself."""
    return isinstance(config.launch, SlurmLaunchConfig) and STOP_FILE not in os.environ


def print_config(overrides: Sequence[str], options: Options) -> int:
    """--cfg job: the composed configuration as YAML, secrets as references."""
    composed = compose_mapping(overrides, options.config_dirs)
    print(OmegaConf.to_yaml(without_secrets(composed)), end="")
    return EXIT_DONE


def fit(overrides: Sequence[str], options: Options) -> int:
    """The verb fit. Returns: exit code."""
    stop_before_training()
    plan = prepare(overrides, options)
    words = [*(f"--config-dir={folder.resolve()}" for folder in options.config_dirs), *overrides]
    try:
        if submits(plan.config):
            from trainer.launch.submit import submit

            return submit(plan.config, words)
        if plan.world.joined:
            return fit_joined(plan)
        if node_range(plan.config.trainer, plan.config.launch)[1] > 1:
            return EXIT_STOPPED if start_nodes(plan.world, plan.config, words) else EXIT_DONE
        run = open_run(plan.config, plan.mapping)
        with recorded_attempt(run, plan.world):
            return on_ranks("fit", run.directory, plan.world, plan.config, ())
    except RankFailure as failure:
        print(failure, file=sys.stderr)
        return EXIT_BUG


def on_ranks(verb: str, run_dir: Path, world: World, config: Config, arguments: Sequence[str]) -> int:
    """Do a verb on new ranks, or here where there is only one. Returns: exit code."""
    if world.launcher == "elastic":
        start_ranks(world, config.launch, [verb, str(run_dir), *arguments], run_dir)
        stopped = verb == "fit" and Record(run_dir).read()["status"] == "stopped"
        return EXIT_STOPPED if stopped else EXIT_DONE
    from trainer.rank import run_rank

    return run_rank(verb, run_dir, arguments, world)


@contextmanager
def recorded_attempt(run: Run, world: World) -> Iterator[None]:
    """Record start and failure of an attempt, and let go of the run at its end; rank 0 records a regular end."""
    run.record.begin_attempt(world.launcher, world.world_size)
    try:
        yield
    except BaseException as error:
        if asked_to_stop():
            run.record.end_attempt("stopped", "on request before the first step")
        else:
            run.record.end_attempt("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        run.close()


def fit_joined(plan: Plan) -> int:
    """torchrun or srun has started this line on every rank: rank 0 opens the run and tells the others where it is."""
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from trainer.rank import process_group, run_rank

    handler = get_error_handler()
    handler.initialize()
    if plan.world.launcher == "torchrun" and STOP_FILE in os.environ:
        # The ranks before these stopped because a node came or went.
        Path(os.environ[STOP_FILE]).unlink(missing_ok=True)
    try:
        with process_group(plan.config, plan.world):
            if plan.world.world_size > 1:
                _compare_configurations(plan.mapping, dist)
            run = _open_on_first_rank(plan, dist)
            if run.opened is None:
                return run_rank("fit", run.directory, (), plan.world)
            with recorded_attempt(run.opened, plan.world):
                return run_rank("fit", run.directory, (), plan.world)
    except Exception as error:
        if asked_to_stop():
            sys.exit(EXIT_STOPPED)
        handler.record_exception(error)
        raise


@dataclass(frozen=True)
class _SharedRun:
    directory: Path
    opened: Run | None


def _open_on_first_rank(plan: Plan, dist: Any) -> _SharedRun:
    message: list[Any] = [None]
    opened = None
    if plan.world.rank == 0:
        try:
            opened = open_run(plan.config, plan.mapping)
            message = [{"directory": str(opened.directory)}]
        except UserError as error:
            message = [{"error": error.lines}]
    if plan.world.world_size > 1:
        dist.broadcast_object_list(message, src=0)
    if "error" in message[0]:
        raise UserError(*message[0]["error"])
    return _SharedRun(Path(message[0]["directory"]), opened)


def _compare_configurations(mapping: dict[str, Any], dist: Any) -> None:
    """Ranks that were started with different lines would train different experiments as one."""
    # The same network may have another name on each node.
    shared = {**mapping, "launch": {**mapping["launch"], "interface": None}}
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    different = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
    if different:
        raise UserError(
            f"rank(s) {', '.join(different)} composed another configuration than rank 0",
            "start every rank with the same line, the same code and the same environment variables",
        )


def on_run(verb: str, words: Sequence[str]) -> int:
    """A verb that takes a run directory: `run=DIR`, then overrides with a dot and the verb's own arguments without.

    Returns: exit code. Raises: UserError: no such run, or wrong overrides.
    """
    from trainer.rank import load_config

    directories = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    if len(directories) != 1:
        raise UserError(f"{verb}: needs run=DIR, as in {verb} run=outputs/cnn/lenet5-digits-4f2a91c0")
    run_dir = Path(directories[0])
    Record(run_dir).read()
    arguments = [word for word in words if not word.startswith("run=")]
    for word in arguments:
        if "=" not in word:
            raise UserError(f"{word}: not of the form key=value")
    _, config, task = load_config(run_dir, arguments)
    world = plan_world(config.trainer, config.launch)
    validate(config, task, world)
    try:
        return on_ranks(verb, run_dir, world, config, arguments)
    except RankFailure as failure:
        print(failure, file=sys.stderr)
        return EXIT_BUG
