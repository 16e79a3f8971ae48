"""The verb sync: a run directory as one run on the W&B server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from trainer.config.credentials import has_wandb_key
from trainer.config.loggers import WandbLoggerConfig, nested
from trainer.errors import EXIT_DONE, UserError, counted
from trainer.network import route_problem
from trainer.report.read import RunData, RunReader, mapping_in
from trainer.run.files import LOCK_FILE, METRICS_FILE, LockHeld, lock_file
from trainer.run.record import Record
from trainer.task import HOME

INIT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class StoredRun:
    """A run that can be uploaded. config: W&B's settings. mapping: config.yaml. growing: it is training, offline."""

    directory: Path
    config: WandbLoggerConfig
    mapping: Mapping[str, Any]
    finished: bool
    growing: bool


def sync(words: Sequence[str]) -> int:
    """Upload runs; all of them are checked before the first one is sent. Args: words: run=DIR, once or more.

    Returns: exit code. Raises: UserError: a wrong argument, a run that is missing, damaged, empty or being trained
        online, or no key or route.
    """
    runs = [_stored_run(path) for path in run_directories("sync", words)]
    require_server("sync")
    for run in runs:
        _upload(run)
    return EXIT_DONE


def run_directories(verb: str, words: Sequence[str]) -> list[Path]:
    """The values of run=DIR. Raises: UserError: another word, none, or one twice."""
    for word in words:
        if not word.startswith("run="):
            raise UserError(f"{word}: {verb} takes only run=DIR")
    if not words:
        raise UserError(f"{verb}: needs run=DIR, as in {verb} run=outputs/cnn/NAME")
    found = [Path(word.removeprefix("run=")) for word in words]
    resolved = [path.resolve() for path in found]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise UserError(f"run={found[number]}: given twice")
    return found


def require_server(verb: str) -> None:
    """Raises: UserError: there is no key, or no route to the W&B server."""
    if not has_wandb_key():
        raise UserError(
            f"{verb}: no W&B key", "set WANDB_API_KEY, or `wandb login`; for a server of your own also WANDB_BASE_URL"
        )
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    problem = route_problem(url)
    if problem is not None:
        raise UserError(
            f"{verb}: {url} cannot be reached ({problem})",
            "set WANDB_BASE_URL to your server, or run it on a machine that has a route",
        )


def _stored_run(run_dir: Path) -> StoredRun:
    """Check a run directory. It imports nothing that the run names."""
    data = RunReader(run_dir).read()
    if not data.series:
        raise UserError(f"run={run_dir}: no complete line in {METRICS_FILE} yet")
    if "wandb_id" not in data.record:
        raise UserError(f"run={run_dir}: run.json has no wandb_id")
    growing = _in_use(run_dir)
    if growing and not _newest_is_offline(run_dir):
        raise UserError(f"run={run_dir}: is being trained online", "it uploads by itself; sync it when it has ended")
    finished = data.record["status"] == "finished"
    return StoredRun(run_dir, wandb_settings(data), data.config, finished, growing)


def _in_use(run_dir: Path) -> bool:
    try:
        lock_file(run_dir / LOCK_FILE, f"sync, process {os.getpid()}").close()
    except LockHeld:
        return True
    except OSError:
        return False  # a copy that cannot be written: nothing trains there
    return False


def _newest_is_offline(run_dir: Path) -> bool:
    """Whether the newest attempt, in case it has W&B as a logger, keeps what it logs."""
    folders = sorted((run_dir / "wandb").glob("*run-*"), key=lambda path: path.stat().st_mtime)
    return not folders or folders[-1].name.startswith("offline-")


def wandb_settings(run: RunData) -> WandbLoggerConfig:
    """W&B's settings of the run; those of conf/ where it has trained without that logger.

    Raises: UserError: a value is wrong, or refers to a variable that is not set here.
    """
    values = yaml.safe_load((HOME / "conf" / "logger" / "wandb.yaml").read_text(encoding="utf-8"))["wandb"]
    try:
        resolved: Any = OmegaConf.create({**run.config})
        logger = mapping_in(run.config, "logger")
        if "name" in logger:
            resolved["logger"] = nested(logger)
        node = OmegaConf.select(resolved, "logger.wandb")
        stored: Any = OmegaConf.to_container(node, resolve=True) if node is not None else {}
        return WandbLoggerConfig(**{**values, **stored})
    except (OmegaConfBaseException, ValidationError) as error:
        raise UserError(f"run={run.directory}: logger.wandb in config.yaml: {str(error).splitlines()[0]}") from error


def _upload(run: StoredRun) -> None:
    import wandb

    from trainer.observe.wandb_run import (
        finish_run,
        log_artifacts,
        mark_as_uploaded,
        run_artifacts,
        start_run,
        upload_pictures,
        upload_rows,
    )

    record = Record(run.directory)
    # Not the machine that has trained, which run.json describes.
    machine = {"x_disable_machine_info": True, "x_disable_meta": True, "x_disable_stats": True}
    with tempfile.TemporaryDirectory(prefix="wandb-") as folder:
        try:
            started = start_run(
                run.config, run.mapping, record, Path(folder), online=True, init_timeout=INIT_TIMEOUT_S, **machine
            )
            sent, total = upload_rows(started, run.directory, finished=run.finished, growing=run.growing)
            upload_pictures(started, run.directory)
            if run.finished:
                log_artifacts(started, run_artifacts(started, run.directory))
            finish_run(started, run.directory, exit_code=0 if run.finished or run.growing else 1)
        except (wandb.Error, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"run={run.directory}: W&B refuses it: {reason}") from error
        if not run.growing:
            mark_as_uploaded(run.directory)
    print(f"{run.directory}: {counted(sent, 'step')} sent, {total - sent} there before; {started.url}")
