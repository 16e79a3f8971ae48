"""The verb fit: train a configuration, or resume its unfinished run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.config.compose import compose_mapping, without_secrets
from trainer.config.nodes import node_range
from trainer.config.schema import Config
from trainer.config.secrets import refer_to_environment
from trainer.errors import EXIT_DONE, EXIT_STOPPED, MicroBatchTooLarge, UserError, nearest
from trainer.faults.signals import create_stop_file, has_stop_file, stop_before_training, stop_requested
from trainer.launch.agent import start_nodes, start_ranks
from trainer.launch.nsys import needs_nsys, note_run, run_under_nsys
from trainer.launch.process_group import process_group
from trainer.launch.rank_logs import set_up_rank_logs
from trainer.launch.submit import submit, submits
from trainer.run.directory import open_run
from trainer.run.outcome import Outcome
from trainer.run.record import Record
from trainer.run.stored_config import plugins_word
from trainer.verbs.prepare import Options, PreparedRun, prepare, take_options
from trainer.world import World

LOG = logging.getLogger(__name__)


def fit(words: Sequence[str]) -> int:
    """Train. Args: words: options and overrides. Returns: exit code. Raises: UserError."""
    options, overrides = take_options(words)
    if options.print_config:
        return _print_config(overrides, options)
    if options.multirun:
        from trainer.verbs.sweep import sweep

        return sweep(overrides, options)
    stop_before_training()
    prepared = prepare(overrides, options)
    command = [*options.as_words(), *overrides]
    if submits(prepared.config):
        return submit(prepared.config, command)
    if needs_nsys(prepared.config):
        return run_under_nsys(command, prepared.world.num_nodes)
    if starts_nodes(prepared):
        return EXIT_STOPPED if start_nodes(prepared.world, prepared.config, command) else EXIT_DONE
    return exit_code(fit_run(prepared))


def starts_nodes(prepared: PreparedRun) -> bool:
    """Whether this process starts the ranks of one node of several; the ranks open the run together."""
    several = node_range(prepared.config.trainer, prepared.config.launch)[1] > 1
    return several and not prepared.world.joined


def fit_run(prepared: PreparedRun) -> Outcome:
    """Open the run and train in this process, in ranks that it starts, or as one of the ranks that it has joined.

    Raises: UserError: also for profiler=nsys, under which only the verb starts the command again.
    """
    if needs_nsys(prepared.config):
        advice = "start Python itself under nsys profile, or use profiler=torch"
        raise UserError("profiler=nsys: only the command starts itself under nsys, not Python", advice)
    return fit_joined(prepared) if prepared.world.joined else _fit_here(prepared)


def exit_code(outcome: Outcome) -> int:
    """The exit code of a process that the user, torchrun or srun has started."""
    # A launcher that reads the stop file would treat 75 as a failure.
    return EXIT_DONE if outcome.status == "finished" or create_stop_file() else EXIT_STOPPED


def _print_config(overrides: Sequence[str], options: Options) -> int:
    """--cfg job: the composed configuration, or the node that --package names, as YAML with secrets as references."""
    mapping: dict[str, Any] = without_secrets(compose_mapping(overrides, options.config_dirs))
    composed = OmegaConf.create(mapping)
    node = OmegaConf.select(composed, options.package) if options.package else composed
    if not OmegaConf.is_config(node):
        nodes = [str(key) for key, value in composed.items() if OmegaConf.is_config(value)]
        raise UserError(f"--package {options.package}: no such node; {nearest(options.package, nodes)}")
    print(OmegaConf.to_yaml(node), end="")
    return EXIT_DONE


def _fit_here(prepared: PreparedRun) -> Outcome:
    config, world = prepared.config, prepared.world
    run = open_run(config, prepared.mapping)
    with run.attempt(world.launcher, world.world_size, stop_requested):
        if world.launcher == "elastic":
            words = [*plugins_word(config.plugins), *prepared.own_words]
            ended = _start_ranks(world, config, run.directory, words)
            outcome = Outcome(run.directory, **ended)
            if outcome.status == "stopped":
                _print_stop(outcome.cause)
            return outcome
        set_up_rank_logs(run.directory, world)
        with process_group(config, world):
            return fit_on_rank(prepared, run.directory)


def _start_ranks(world: World, config: Config, run_dir: Path, words: Sequence[str]) -> Any:
    """Start the ranks, again for as long as they find that their micro-batches have to be smaller."""
    while True:
        try:
            return start_ranks(world, config.launch, "fit", run_dir, words)
        except MicroBatchTooLarge as failure:
            print(failure, file=sys.stderr)


def _print_stop(cause: str) -> None:
    print(f"stopped {cause.removeprefix('on request ')}; the same command resumes", flush=True)


def fit_joined(prepared: PreparedRun) -> Outcome:
    """Train as one of the ranks that torchrun or srun has started, each from the command line."""
    from trainer.launch.joined import open_shared_run, reported_to_agent

    world = prepared.world
    with reported_to_agent(world), process_group(prepared.config, world):
        run_dir, run = open_shared_run(prepared.config, prepared.mapping)
        set_up_rank_logs(run_dir, world)
        with run.attempt(world.launcher, world.world_size, stop_requested) if run else nullcontext():
            return fit_on_rank(prepared, run_dir)


def fit_on_rank(prepared: PreparedRun, run_dir: Path) -> Outcome:
    """Train on this rank, inside its process group; rank 0 records a stop."""
    from trainer.engine.train import train
    from trainer.faults.stop import StopRequested
    from trainer.launch.peers import is_network_error

    world = prepared.world
    note_run(run_dir)
    if world.rank == 0:
        _report_restart(run_dir)
        if prepared.config.run.print_config:
            print(OmegaConf.to_yaml(OmegaConf.create(prepared.mapping)), end="", flush=True)
    try:
        return train(prepared.config, prepared.mapping, prepared.task, world, run_dir)
    except StopRequested as request:
        cause = f"on request {request}"
    except RuntimeError as error:
        # The signal that srun sends to all ranks has reached another one first, which ended before it could agree with
        # this one. Under torchrun the agent has to see a failure: it may have ended that rank to start all again.
        if not (world.launcher == "slurm" and is_network_error(error) and has_stop_file()):
            raise
        cause = "on request before the first step"
    except UserError as error:
        if world.rank != 0:  # the terminal has what rank 0 prints; this goes to the rank's own log
            LOG.error(refer_to_environment("\n".join(error.lines)))
        raise
    if world.rank == 0:
        # Elastic ends a rank by the same signal where another one has failed: the parent knows.
        if world.launcher != "elastic":
            _print_stop(cause)
        Record(run_dir).end_attempt("stopped", cause)
    return Outcome(run_dir, "stopped", cause)


def _report_restart(run_dir: Path) -> None:
    """Print and record that elastic has restarted the ranks within one attempt."""
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restart:
        print(f"restart {restart} of {os.environ['TORCHELASTIC_MAX_RESTARTS']}: a rank failed")
        Record(run_dir).record_restart(restart)
