"""Weights & Biases while a run trains: one run on rank 0, which never ends or delays training."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger

from trainer.config.credentials import has_wandb_key
from trainer.config.loggers import WandbLoggerConfig
from trainer.errors import UserError
from trainer.network import route_problem
from trainer.observe.wandb_run import (
    files_of_run,
    finish_run,
    log_artifacts,
    mark_as_uploaded,
    run_artifacts,
    start_run,
    upload_pictures,
    upload_rows,
)
from trainer.run.record import Record

log = logging.getLogger(__name__)

# wandb waits 90 s for a server that does not answer, and then ends the process.
INIT_TIMEOUT_S = 15.0
# At the end of a run; wandb itself waits for a server that has gone for as long as it takes. It asks the server about
# each artifact first, where no setting limits it.
ARTIFACTS_TIMEOUT_S = 5.0
FINISH_TIMEOUT_S = 20.0
MAX_MESSAGE = 300  # characters


class StepLogger(WandbLogger):
    """W&B's own step is the optimizer step, and a row holds everything that is logged at a step.

    Lightning's logger counts calls instead, so that a resumed run would log the steps since its checkpoint again. Here
    a step that the server has is left out, and a row is sent when it is complete: W&B adds nothing to an earlier one.
    """

    def __init__(self, run_dir: Path, run: wandb.Run) -> None:
        super().__init__(save_dir=str(run_dir), experiment=run, log_model=False)
        self.run_dir, self.run = run_dir, run
        self.step = self.first_step = max(run.starting_step, run.step)
        self.row: dict[str, Any] = {}
        self.lost = False

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of a step. Args: step: None for that of the last call."""
        if step is not None and step != self.step:
            self.send_row()
            self.step = step
        self.row.update(metrics)

    def send_row(self) -> None:
        """Send what was logged at the last step."""
        row, step = self.row, self.step
        if row and step >= self.first_step:
            self.attempt(lambda: self.run.log(row, step=step, commit=True))
        self.row = {}

    def attempt(self, call: Callable[[], None]) -> None:
        """Call wandb. An error of its, such as that its process was killed, ends the logging there, not training."""
        if self.lost:
            return
        try:
            call()
        except TimeoutError:  # at the end; what is missing is said there
            self.lost = True
        except Exception as error:  # wandb lets errors of its transport through, which have no common class
            log.warning("W&B has failed", exc_info=True)
            _warn(f"W&B has failed at step {self.step} and gets nothing more from here: {_text(error)}")
            self.lost = True
            # Otherwise wandb fails at the end of the process, with a traceback.
            _ends_within(ARTIFACTS_TIMEOUT_S, wandb.teardown)


def build_wandb_logger(config: WandbLoggerConfig, mapping: Mapping[str, Any], record: Record) -> StepLogger:
    """Start W&B's run; online or offline is decided here, since wandb raises without a server.

    Online, the steps that the server lacks are uploaded first: those of an offline attempt, and those of a killed one
    that were not sent yet.

    Args: mapping: the configuration as written to config.yaml, secrets as references.
    Raises: UserError: it has to be online, and the server refuses the run.
    """
    online = config.mode == "online" or (config.mode == "auto" and can_reach_wandb())
    (record.directory / "wandb").mkdir(exist_ok=True)
    run = _start_online(config, mapping, record) if online else None
    if run is None:
        run = start_run(config, mapping, record, record.directory, online=False)
    else:
        upload_rows(run, record.directory, finished=False)
        upload_pictures(run, record.directory)
    return StepLogger(record.directory, run)


def _start_online(config: WandbLoggerConfig, mapping: Mapping[str, Any], record: Record) -> wandb.Run | None:
    """Start an online run; None where the server refuses it and the configuration allows to be offline."""
    limits = {"init_timeout": INIT_TIMEOUT_S, "finish_timeout": FINISH_TIMEOUT_S, "finish_timeout_raises": True}
    try:
        return start_run(config, mapping, record, record.directory, online=True, **limits)
    except Exception as error:  # also of its transport, which have no common class
        log.warning("W&B has failed", exc_info=True)
        if config.mode == "online":
            raise UserError(f"logger.wandb.mode=online: W&B refuses the run: {_text(error)}") from error
        _warn(f"W&B is offline: the server does not take the run: {_text(error)}")
        return None


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _warn(message: str) -> None:
    """One line on the terminal, and in the log."""
    log.warning(message)
    shown = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
    print(f"warning: {shown}", file=sys.stderr, flush=True)


def can_reach_wandb() -> bool:
    """Whether there are a key and a route to the server; logs which of them is missing."""
    if not has_wandb_key():
        log.info("W&B is offline: no key (wandb login, or WANDB_API_KEY)")
        return False
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    problem = route_problem(url)
    if problem is not None:
        _warn(f"W&B is offline: {url} cannot be reached ({problem})")
    return problem is None


def finish_wandb(logger: StepLogger, exit_code: int, finished: bool) -> str:
    """End the W&B run. Online, a finished one gets the pictures and tables of its directory, and artifacts.

    Returns: the run's address, or the command that uploads what the server does not have.
    """
    run = logger.run
    sync, url, offline = f"python -m trainer sync run={logger.run_dir}", str(run.url), run.offline
    complete = True
    if finished and not offline and not logger.lost:
        logger.log_metrics(files_of_run(logger.run_dir))
        artifacts = run_artifacts(run, logger.run_dir)
        complete = _ends_within(ARTIFACTS_TIMEOUT_S, lambda: log_artifacts(run, artifacts))
    logger.send_row()
    logger.attempt(lambda: finish_run(run, logger.run_dir, exit_code))
    complete &= not logger.lost
    if not complete:
        _warn(f"W&B has not received everything within {FINISH_TIMEOUT_S:g} s; this uploads the rest: {sync}")
    elif not offline:
        mark_as_uploaded(logger.run_dir)
    return sync if offline or not complete else url


def _ends_within(timeout_s: float, call: Callable[[], None]) -> bool:
    """Whether a call ends in time and raises nothing; in a thread that is left behind where it does not."""
    done = threading.Event()

    def work() -> None:
        try:
            call()
        except Exception:  # wandb lets errors of its transport through, which have no common class
            log.warning("W&B has failed", exc_info=True)
        else:
            done.set()

    thread = threading.Thread(target=work, daemon=True, name="wandb-end")
    thread.start()
    thread.join(timeout_s)
    return done.is_set()
