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
    interval = options.val_check_interval
    if not isinstance(interval, int) or options.check_val_every_n_epoch is None or not options.limit_val_batches:
        return
    steps = _steps_of_epoch(config, data)
    if interval > steps:
        raise UserError(
            f"trainer.val_check_interval={interval}: an epoch has only {steps} steps",
            f"use {steps} or less, or count across epochs with trainer.check_val_every_n_epoch=null",
        )


def num_steps(config: Config, data: DataModule) -> int:
    """Steps of the whole run, if nothing ends it early."""
    epochs, steps = config.trainer.max_epochs, config.trainer.max_steps
    if epochs is None:
        return steps
    of_epochs = epochs * _steps_of_epoch(config, data)
    return of_epochs if steps == -1 else min(steps, of_epochs)


def _steps_of_epoch(config: Config, data: DataModule) -> int:
    steps, limit = data.train_sampler().num_steps, config.trainer.limit_train_batches
    return min(limit, steps) if isinstance(limit, int) else int(limit * steps)
