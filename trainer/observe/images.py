"""Pictures of a run, to W&B where it is in use."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl


def log_image(trainer: pl.Trainer, key: str, path: Path) -> None:
    """Show an image file under `key` at the current step; without W&B the file itself is all there is."""
    for logger in trainer.loggers:
        show = getattr(logger, "log_image", None)
        if show is not None and trainer.is_global_zero:
            show(key=key, images=[str(path)], step=trainer.global_step)
