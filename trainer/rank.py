"""One rank of a run: `python -m trainer.rank VERB RUN_DIR [key=value ...]`, or called in a process that is one.

Everything before this module is torch-free; everything after it is the same whoever started the rank.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from trainer.compose import typed
from trainer.config import Config
from trainer.errors import EXIT_BUG, EXIT_DONE, EXIT_STOPPED, EXIT_USER, UserError
from trainer.faults.leave import end_with_parent, run_and_leave
from trainer.faults.signals import STOP_FILE, stop_before_training
from trainer.launch.group import process_group
from trainer.launch.world import World, plan_world
from trainer.run import Record
from trainer.task import TaskSpec

MISSING_KEY = object()


def main() -> int:
    """A rank that elastic has started: `VERB RUN_DIR ...` where the parent has opened a run, `join WORDS...` where
    the ranks of several nodes are yet to agree on one. Returns: exit code."""
    end_with_parent(signal.SIGKILL)
    stop_before_training()
    verb, *arguments = sys.argv[1:]
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    handler = get_error_handler()
    handler.initialize()
    try:
        if verb == "join":
            from trainer.fit import fit_joined, prepare, take_options

            options, overrides = take_options(arguments)
            return fit_joined(prepare(overrides, options))
        return run_rank(verb, Path(arguments[0]), arguments[1:], None)
    except UserError as error:
        # The parent tells it, once for all ranks.
        handler.record_exception(error)
        return EXIT_USER
    except Exception as error:
        # To the log, not to the terminal: the parent shows the first failure of all ranks, last.
        logging.getLogger("trainer").exception("this rank failed")
        handler.record_exception(error)
        return EXIT_BUG


def run_rank(verb: str, run_dir: Path, arguments: Sequence[str], world: World | None) -> int:
    """Read the run's configuration, join the process group and do what the verb says.

    Args: world: None in a rank that elastic has started, which finds it in the environment.
    Returns: exit code. Raises: UserError and everything that goes wrong.
    """
    mapping, config, task = load_config(run_dir, arguments)
    world = world or replace(plan_world(config.trainer, config.launch), launcher="elastic")
    _set_up_logs(run_dir, world)
    if verb == "fit":
        from trainer.engine import fit

        if world.rank == 0:
            _tell_restart(run_dir)
        with process_group(config, world):
            return _recorded(run_dir, world, lambda: fit(config, mapping, task, world, run_dir))
    from trainer.evaluate import VERBS

    with process_group(config, world):
        VERBS[verb](config, task, world, run_dir, arguments)
    return EXIT_DONE


def _tell_restart(run_dir: Path) -> None:
    """Elastic starts the ranks again under the same attempt."""
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restart:
        print(f"restart {restart} of {os.environ['TORCHELASTIC_MAX_RESTARTS']}: a rank has failed")
        record = Record(run_dir)
        attempts = record.read()["attempts"]
        attempts[-1]["restarts"] = restart
        record.update(attempts=attempts)


def load_config(run_dir: Path, arguments: Sequence[str] = ()) -> tuple[dict[str, Any], Config, TaskSpec]:
    """config.yaml of a run, changed by those arguments whose key has a dot.

    Returns: (the mapping with references unresolved, the typed configuration, its task).
    Raises: UserError: the file cannot be read, or a key or value is wrong.
    """
    try:
        mapping = OmegaConf.load(run_dir / "config.yaml")
    except OSError as error:
        raise UserError(f"run={run_dir}: no readable config.yaml") from error
    for word in arguments:
        key, _, value = word.partition("=")
        if "." not in key:
            continue
        if OmegaConf.select(mapping, key, default=MISSING_KEY) is MISSING_KEY:
            raise UserError(f"{word}: no such key in {run_dir / 'config.yaml'}")
        OmegaConf.update(mapping, key, yaml.safe_load(value))
    config, task = typed(mapping)  # pyright: ignore[reportArgumentType]
    plain: Any = OmegaConf.to_container(mapping, resolve=False)
    return plain, config, task


def _recorded(run_dir: Path, world: World, attempt: Callable[[], Any]) -> int:
    """Rank 0 writes how the attempt ended; a failure is written by whoever holds the run's lock."""
    from trainer.engine import Outcome
    from trainer.faults.stop import StopRequested

    try:
        outcome = attempt()
    except StopRequested as request:
        outcome = Outcome("stopped", str(request))
    if world.rank == 0:
        Record(run_dir).end_attempt(outcome.status, outcome.cause)
    return _stopped(world) if outcome.status == "stopped" else EXIT_DONE


def _stopped(world: World) -> int:
    """Exit code of a rank that was asked to stop, and must not look failed to those who would react to that."""
    if STOP_FILE in os.environ:
        Path(os.environ[STOP_FILE]).touch()
        return EXIT_DONE
    return EXIT_DONE if world.launcher == "elastic" else EXIT_STOPPED


def _set_up_logs(run_dir: Path, world: World) -> None:
    """Every rank's log goes to its own file; all ranks but the first print there too."""
    path = run_dir / "logs" / f"rank-{world.rank}.log"
    path.parent.mkdir(exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger()
    for old in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logging.captureWarnings(True)
    logging.getLogger("trainer").setLevel(logging.INFO)
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        noisy = logging.getLogger(name)
        noisy.handlers.clear()
        noisy.propagate = True
    if world.rank != 0:
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


if __name__ == "__main__":
    run_and_leave(main)
