"""An evaluation after the last step, whatever the cadence."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from trainer.config.schema import Config
from trainer.data.module import DataModule
from trainer.errors import UserError


def evaluate_after_last_step(trainer: pl.Trainer, config: Config) -> None:
    """Make Lightning evaluate after the last step too: by itself it does so only where the cadence falls on it.

    Extends the loop's own decision, so that saving, resuming and early stopping treat it as any other evaluation.
    """
    loop = trainer.fit_loop.epoch_loop
    at_cadence = loop._should_check_val_fx
    max_steps, max_epochs = config.trainer.max_steps, config.trainer.max_epochs

    def at_cadence_or_end(data_fetcher: Any) -> bool:
        epochs: Any = trainer.fit_loop.epoch_progress.current
        in_last_epoch = max_epochs is not None and epochs.processed + 1 >= max_epochs
        ends_epochs = in_last_epoch and loop._num_ready_batches_reached()
        ends_steps = max_steps != -1 and trainer.global_step >= max_steps
        return at_cadence(data_fetcher) or (trainer.enable_validation and (ends_epochs or ends_steps))

    loop._should_check_val_fx = at_cadence_or_end


def check_interval(config: Config, data: DataModule) -> None:
    """Raises: UserError: trainer.val_check_interval is longer than an epoch, which Lightning refuses."""
    options = config.trainer
    interval, limit = options.val_check_interval, options.limit_train_batches
    if not isinstance(interval, int) or options.check_val_every_n_epoch is None or not options.limit_val_batches:
        return
    steps = data.train_sampler().num_steps
    steps = min(limit, steps) if isinstance(limit, int) else int(limit * steps)
    if interval > steps:
        raise UserError(
            f"trainer.val_check_interval={interval}: an epoch has only {steps} steps",
            f"use {steps} or less, or count across epochs with trainer.check_val_every_n_epoch=null",
        )
