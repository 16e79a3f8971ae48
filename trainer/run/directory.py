"""The run directory: the decision to resume one or to create another, and its lock."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from trainer.config.identity import identity_hash, recorded_identity, run_name
from trainer.config.schema import Config
from trainer.errors import EXIT_STOPPED, UserError
from trainer.run.files import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    LOCK_FILE,
    LOGS_DIR,
    METRICS_FILE,
    RECORD_FILE,
    LockHeld,
    lock_file,
    refuse_links_outside,
    write_json,
    write_text,
)
from trainer.run.lengthening import LENGTHS, is_longer, lengthen
from trainer.run.opening import open_stored_run
from trainer.run.record import Record, now


class StoppedAtOnce(SystemExit):
    """A stop before the first step or within one: the process exits with 75. run_dir: what the same command resumes."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(EXIT_STOPPED)
        self.run_dir = run_dir


@dataclass
class Run:
    """An open run directory, locked until `close` or the end of the process.

    resumed: the directory existed, unfinished, and is continued. with_git_diff: run.record_git_diff. kept: False where
    the directory is removed after an attempt that has ended well (trainer.fast_dev_run).
    """

    directory: Path
    resumed: bool
    lock: TextIO
    with_git_diff: bool
    kept: bool

    @property
    def record(self) -> Record:
        """The run's run.json."""
        return Record(self.directory)

    def close(self) -> None:
        """Release the lock."""
        self.lock.close()

    @contextmanager
    def attempt(self, launcher: str, world_size: int, stop_requested: Callable[[], bool]) -> Iterator[None]:
        """Record the start of an attempt and its failure; rank 0 records a regular end. Releases the lock.

        Args: stop_requested: whether a stop was requested before training, which makes a failure a stop.
        Raises: StoppedAtOnce: after a stop before the first step or within one.
        """
        self.record.begin_attempt(launcher, world_size, self.with_git_diff)
        try:
            yield
        except BaseException as error:
            asked = isinstance(error, KeyboardInterrupt) or (
                isinstance(error, SystemExit) and error.code == EXIT_STOPPED
            )
            if asked or stop_requested():
                self._record_end("stopped", "on request, not at the end of a step")
                print("stopped; the same command resumes", file=sys.stderr)
                raise StoppedAtOnce(self.directory) from None
            self._record_end("failed", f"{type(error).__name__}: {error}")
            raise
        else:
            if not self.kept:
                self._remove()
        finally:
            self.close()

    def _record_end(self, status: str, cause: str) -> None:
        """Record the end, unless the storage refuses that: it may be the cause, which is what the user has to read."""
        with suppress(OSError):
            self.record.end_attempt(status, cause)

    def _remove(self) -> None:
        """Remove the directory, and those of the fast_dev_run where they are empty."""
        # Another rank may still write its log.
        shutil.rmtree(self.directory, ignore_errors=True)
        for parent in (self.directory.parent, self.directory.parent.parent):
            with suppress(OSError):
                parent.rmdir()


def open_run(config: Config, mapping: Mapping[str, Any]) -> Run:
    """Resume the unfinished run of this identity, make a named run longer, or create a new directory beside the
    finished ones.

    Args: mapping: the composed configuration, secrets as references, written to config.yaml.
    Raises: UserError: the run is in use, or run.name belongs to another experiment.
    """
    directory, resumed = _choose(config, mapping)
    try:
        directory.mkdir(0o700 if config.run.private else 0o777, parents=True, exist_ok=True)
        refuse_links_outside(directory)
        run = Run(directory, resumed, _lock(directory), config.run.record_git_diff, not config.trainer.fast_dev_run)
    except OSError as error:
        raise UserError(f"run.root={config.run.root}: {directory} cannot be written ({error.strerror})") from error
    for folder in (LOGS_DIR, CHECKPOINTS_DIR):
        (directory / folder).mkdir(exist_ok=True)
    if not resumed:
        write_json(run.record.file, _new_record(config, mapping))
    elif run.record.read()["hash"] != identity_hash(config):
        lengthen(run.record, identity_hash(config), recorded_identity(config, mapping))
    write_text(directory / CONFIG_FILE, yaml.safe_dump(dict(mapping), sort_keys=False))
    return run


def _new_record(config: Config, mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": "created",
        "created": now(),
        "hash": identity_hash(config),
        "identity": recorded_identity(config, mapping),
        # Before W&B starts: a run that is killed in its first second still resumes under the same id.
        "wandb_id": secrets.token_hex(4),
        "attempts": [],
    }


def _choose(config: Config, mapping: Mapping[str, Any]) -> tuple[Path, bool]:
    """Returns: (directory, whether it is an unfinished run to resume)."""
    parent, name = Path(config.run.root) / config.task.name, run_name(config)
    number, latest = 1, None
    while (candidate := parent / (name if number == 1 else f"{name}-{number}")).exists():
        latest, number = candidate, number + 1
    if latest is None or not (latest / RECORD_FILE).exists():
        return latest or candidate, False
    record = open_stored_run(latest)
    if record["hash"] != identity_hash(config):
        if config.run.name is None:  # a run that was made longer under its own name
            return candidate, False
        if _never_trained(latest):
            # Its configuration was probably an error that this one corrects. `_lock` refuses a run that is starting.
            return latest, False
        old, new = record["identity"], recorded_identity(config, mapping)
        differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if is_longer(old, new, differing) and not config.run.fresh:
            return latest, True
        raise UserError(
            f"run.name={config.run.name}: {latest} holds another experiment; it differs in {', '.join(differing)}",
            "a run can be made longer, not shorter"
            if set(differing) <= set(LENGTHS)
            else "choose another run.name, or leave it out",
        )
    if record["status"] == "finished" or config.run.fresh:
        return candidate, False
    return latest, True


def _never_trained(directory: Path) -> bool:
    """Whether no attempt has come as far as a logged step or a checkpoint."""
    metrics = directory / METRICS_FILE
    logged = metrics.exists() and metrics.stat().st_size > 0
    return not logged and not any((directory / CHECKPOINTS_DIR).glob("step-*"))


def _lock(directory: Path) -> TextIO:
    try:
        return lock_file(directory / LOCK_FILE, f"process {os.getpid()} on {socket.gethostname()}")
    except LockHeld as held:
        raise UserError(
            f"{directory} is in use by {held.holder or 'another process'}",
            "wait for it, end it, or start beside it with run.fresh=true",
        ) from None
