"""Images of a run: files in its directory, and in W&B where it is used."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from trainer.run.media import section_name


def log_image(trainer: pl.Trainer, path: Path) -> None:
    """Log an image file of the run directory at the current step to the loggers that take images."""
    key = section_name(path, Path(trainer.default_root_dir))
    for logger in trainer.loggers:
        log = getattr(logger, "log_image", None)
        if log is not None and trainer.is_global_zero:
            log(key=key, images=[str(path)], step=trainer.global_step)
