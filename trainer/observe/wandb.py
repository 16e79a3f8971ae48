"""Weights & Biases while a run trains: one run on rank 0, which never ends or delays training."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger

from trainer.config.credentials import has_wandb_key
from trainer.config.loggers import WandbLoggerConfig
from trainer.errors import UserError
from trainer.network import route_problem
from trainer.observe.wandb_run import files_of_run, finish_run, log_artifacts, start_run, upload_rows
from trainer.run.record import Record

log = logging.getLogger(__name__)

# At the end of a run; wandb itself waits for a server that has gone for as long as it takes.
FINISH_TIMEOUT_S = 30.0


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

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of a step. Args: step: None for that of the last call."""
        if step is not None and step != self.step:
            self.send_row()
            self.step = step
        self.row.update(metrics)

    def send_row(self) -> None:
        """Send what was logged at the last step."""
        if self.row and self.step >= self.first_step:
            self.run.log(self.row, step=self.step, commit=True)
        self.row = {}


def build_wandb_logger(config: WandbLoggerConfig, mapping: Mapping[str, Any], record: Record) -> StepLogger:
    """Start W&B's run; online or offline is decided here, since wandb raises after 90 s without a server.

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
    return StepLogger(record.directory, run)


def _start_online(config: WandbLoggerConfig, mapping: Mapping[str, Any], record: Record) -> wandb.Run | None:
    """Start an online run; None where the server refuses it and the configuration allows to be offline."""
    limits = {"finish_timeout": FINISH_TIMEOUT_S, "finish_timeout_raises": True}
    try:
        return start_run(config, mapping, record, record.directory, online=True, **limits)
    except (wandb.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        if config.mode == "online":
            raise UserError(f"logger.wandb.mode=online: W&B refuses the run: {reason}") from error
        log.warning("W&B is offline: the server refuses the run: %s", reason)
        return None


def can_reach_wandb() -> bool:
    """Whether there are a key and a route to the server; logs which of them is missing."""
    if not has_wandb_key():
        log.info("W&B is offline: no key (wandb login, or WANDB_API_KEY)")
        return False
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    problem = route_problem(url)
    if problem is not None:
        log.warning("W&B is offline: %s cannot be reached (%s)", url, problem)
    return problem is None


def finish_wandb(logger: StepLogger, exit_code: int, finished: bool) -> str:
    """End the W&B run. Online, a finished one gets the pictures and tables of its directory, and artifacts.

    Returns: the run's address, or the command that uploads what the server does not have.
    """
    run = logger.run
    if finished and not run.offline:
        logger.log_metrics(files_of_run(logger.run_dir))
        log_artifacts(run, logger.run_dir)
    logger.send_row()
    sync, url, offline = f"python -m trainer sync run={logger.run_dir}", str(run.url), run.offline
    try:
        finish_run(run, logger.run_dir, exit_code)
    except TimeoutError:
        log.warning("W&B has not received everything within %g s; this uploads the rest: %s", FINISH_TIMEOUT_S, sync)
        return sync
    return sync if offline else url
