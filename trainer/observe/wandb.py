"""Weights & Biases: one run on rank 0, which never ends or holds up training."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from trainer.config.credentials import has_wandb_key
from trainer.config.groups import WandbLoggerConfig
from trainer.config.secrets import redact_words

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger

log = logging.getLogger(__name__)

ROUTE_TIMEOUT_S = 3.0


def build_wandb_logger(config: WandbLoggerConfig, mapping: dict[str, Any], run_dir: Path, wandb_id: str) -> WandbLogger:
    """Lightning's logger, online or offline as decided here: wandb itself raises after 90 s without a server.

    Args: mapping: the configuration as written to config.yaml, secrets as references. wandb_id: from the record, so
        that a resumed run continues its curves.
    """
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    online = config.mode == "online" or (config.mode == "auto" and can_reach_wandb())
    (run_dir / "wandb").mkdir(exist_ok=True)
    # The table at the end says where the run is; wandb's own banner would break the progress bar.
    os.environ.setdefault("WANDB_SILENT", "true")
    # Started here, since Lightning always passes an argument that makes wandb warn on the terminal.
    with _redacted_command_line():
        run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags,
            notes=config.notes,
            name=run_dir.name,
            id=wandb_id,
            resume="allow",
            dir=str(run_dir),
            mode="online" if online else "offline",
            config=mapping,
            # The record has the commit; changes of the code may hold what is not meant to be shared.
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_code=True),
        )
    # The one step axis, which Lightning defines for the runs that it starts itself.
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
    """Whether there are a key and a route to the server; each lack is told in the log."""
    if not has_wandb_key():
        log.info("W&B is offline: no key (wandb login, or WANDB_API_KEY)")
        return False
    address = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=ROUTE_TIMEOUT_S).close()
    except OSError as error:
        log.warning("W&B is offline: %s cannot be reached (%s)", address.hostname, error)
        return False
    return True


def finish_wandb(logger: WandbLogger, exit_code: int, model: Path | None) -> str:
    """End the W&B run; online, the final model goes up as an artifact of type model.

    Returns: where the run is to be seen, or how it gets there.
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
