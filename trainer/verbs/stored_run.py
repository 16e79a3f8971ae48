"""What eval and predict have in common: a run directory, and ranks to work on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.config.schema import Config
from trainer.errors import EXIT_BUG, EXIT_DONE, UserError
from trainer.launch.agent import RankFailure, start_ranks
from trainer.launch.discover import plan_world
from trainer.launch.process_group import process_group
from trainer.launch.rank_logs import set_up_rank_logs
from trainer.run.record import Record
from trainer.run.stored_config import read_stored_config
from trainer.task import TaskSpec
from trainer.verbs.prepare import PreparedRun
from trainer.world import World

Check = Callable[[Config, TaskSpec, World], None]
RankFunction = Callable[[PreparedRun, Path, Sequence[str]], None]


def on_stored_run(verb: str, words: Sequence[str], on_rank: RankFunction, check: Check | None = None) -> int:
    """A verb that takes a run directory: `run=DIR`, then overrides with a dot and the verb's own arguments without.

    The task's own checks are left out: they have passed when the run began, and the files that they look for may be
    gone since.

    Args: check: of the configuration and the world before ranks start.
    Returns: exit code. Raises: UserError: no such run, or wrong overrides.
    """
    directories = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    if len(directories) != 1:
        raise UserError(f"{verb}: needs run=DIR, as in {verb} run=outputs/cnn/lenet5-digits-4f2a91c0")
    run_dir = Path(directories[0])
    Record(run_dir).read()
    arguments = [word for word in words if not word.startswith("run=")]
    for word in arguments:
        if "=" not in word:
            raise UserError(f"{word}: not of the form key=value")
    prepared = prepare_stored(run_dir, arguments)
    config, world = prepared.config, prepared.world
    if check is not None:
        check(config, prepared.task, world)
    try:
        if world.launcher == "elastic":
            start_ranks(world, config.launch, [verb, str(run_dir), *arguments], run_dir)
        else:
            set_up_rank_logs(run_dir, world)
            with process_group(config, world):
                on_rank(prepared, run_dir, arguments)
    except RankFailure as failure:
        print(failure, file=sys.stderr)
        return EXIT_BUG
    return EXIT_DONE


def prepare_stored(run_dir: Path, arguments: Sequence[str]) -> PreparedRun:
    """The run's configuration, changed by those arguments whose key has a dot. Raises: UserError."""
    stored = read_stored_config(run_dir, [word for word in arguments if "." in word.partition("=")[0]])
    world = plan_world(stored.config.trainer, stored.config.launch)
    return PreparedRun(stored.config, stored.mapping, stored.task, world)
