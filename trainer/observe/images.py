"""Images of a run: files in its directory, and in W&B where it is used."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl


def log_image(trainer: pl.Trainer, key: str, path: Path) -> None:
    """Log an image file under `key` at the current step to the loggers that take images."""
    for logger in trainer.loggers:
        log = getattr(logger, "log_image", None)
        if log is not None and trainer.is_global_zero:
            log(key=key, images=[str(path)], step=trainer.global_step)
