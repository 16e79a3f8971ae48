"""Weights & Biases: one run on rank 0, which never ends or delays training."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.credentials import has_wandb_key
from trainer.config.loggers import WandbLoggerConfig
from trainer.config.secrets import redact_words
from trainer.network import route_problem

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger

log = logging.getLogger(__name__)


def build_wandb_logger(config: WandbLoggerConfig, mapping: dict[str, Any], run_dir: Path, wandb_id: str) -> WandbLogger:
    """Build Lightning's logger; online or offline is decided here, since wandb raises after 90 s without a server.

    Args: mapping: the configuration as written to config.yaml, secrets as references. wandb_id: from the record, so
        that a resumed run continues its curves.
    """
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    online = config.mode == "online" or (config.mode == "auto" and can_reach_wandb())
    (run_dir / "wandb").mkdir(exist_ok=True)
    # The run's place is printed at the end; wandb's own banner would break the progress bar.
    os.environ.setdefault("WANDB_SILENT", "true")
    with _redacted_command_line():
        # Started here because Lightning passes an argument that makes wandb print a warning.
        run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags,
            notes=config.notes,
            name=run_dir.name,
            id=wandb_id,
            resume="allow",
            # Absolute: the files are written by wandb's service, which keeps the directory that it was started in.
            dir=str(run_dir.resolve()),
            mode="online" if online else "offline",
            config=mapping,
            # The record has the commit; uncommitted changes may hold what is not meant to be shared.
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_code=True),
        )
    # One step axis for all metrics, as Lightning defines it for runs that it starts.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(save_dir=str(run_dir), experiment=run, log_model=False)


@contextmanager
def _redacted_command_line() -> Iterator[None]:
    """wandb records sys.argv by itself and has no setting against it alone."""
    before = sys.argv
    sys.argv = redact_words(before)
    try:
        yield
    finally:
        sys.argv = before


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


def finish_wandb(logger: WandbLogger, exit_code: int, model: Path | None) -> str:
    """End the W&B run; online, the final model is uploaded as an artifact of type model.

    Returns: the run's address, or the command that uploads an offline run.
    """
    experiment = logger.experiment
    if model is not None and not experiment.offline:
        import wandb

        artifact = wandb.Artifact(f"model-{experiment.id}", type="model")
        artifact.add_file(str(model))
        experiment.log_artifact(artifact)
    where = f"wandb sync {Path(experiment.dir).parent}" if experiment.offline else str(experiment.url)
    experiment.finish(exit_code=exit_code)
    return where
