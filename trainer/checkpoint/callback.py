"""When checkpoints are saved: at a cadence, at evaluations, at the end, and when a stop is requested."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl

from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.weights import read_state
from trainer.clock import StepClock
from trainer.config.identity import identity_hash
from trainer.config.schema import Config
from trainer.errors import UserError, nearest
from trainer.faults.stop import StopOnSignal, StopRequested
from trainer.module import TrainingModule
from trainer.run.files import STATE_FILE
from trainer.run.metrics_file import flush_metrics
from trainer.run.record import Record

STATE_KEY = "checkpointing"


class Checkpointing(pl.Callback):
    """Saves between steps only, so that a checkpoint's step is complete and the next one has not begun.

    Lightning's ModelCheckpoint neither flushes nor verifies, and with save_top_k=1 deletes the old file first.

    best_step: step of the best evaluation so far. All decisions are functions of the step and of metrics, which are
    equal on all ranks, and never of the file system.
    """

    def __init__(self, config: Config, run_dir: Path, stop: StopOnSignal, clock: StepClock) -> None:
        self.config, self.run_dir, self.stop, self.clock = config, run_dir, stop, clock
        self.store = CheckpointStore(run_dir)
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.saved_step: int | None = None
        self.stopping = self.evaluation_pending = self.recorded = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the cadence, or stop; a step that is evaluated is saved after its evaluation."""
        # Which waits for the slowest rank's last step.
        with self.clock.within("communication"):
            self.stopping = self.stop.agreed()
        if (self.stopping or self._due(trainer)) and not self._evaluates(trainer):
            self.save(trainer, _checked(pl_module))
            if self.stopping:
                self._stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the evaluation where the step's end has agreed on it."""
        if self.stopping:
            self._save_before_evaluation(trainer, _checked(pl_module))
            self._stop(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within an evaluation, which is repeated on resuming."""
        if _is_fitting(trainer) and self.stop.agreed():
            self._save_before_evaluation(trainer, _checked(pl_module))
            self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after an evaluation, and remember the best one.

        Raises: UserError: the task has no metric of the name monitor.metric.
        """
        module, monitor = _checked(pl_module), self.config.monitor
        if monitor.metric not in module.evaluated:
            advice = nearest(monitor.metric, list(module.evaluated))
            raise UserError(
                f"monitor.metric={monitor.metric}: task={self.config.task.name} has no such metric; {advice}"
            )
        if not _is_fitting(trainer):
            return
        self.evaluation_pending = False
        trainer.fit_loop.epoch_loop.max_steps = self.config.trainer.max_steps
        better = self._is_better(module.evaluated[monitor.metric])
        if better:
            self.best_value, self.best_step = module.evaluated[monitor.metric], trainer.global_step
        if self.config.checkpoint.at_evaluation or self._due(trainer) or better:
            self.save(trainer, module, module.evaluated)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state, unless it has been."""
        if trainer.global_step != self.saved_step:
            self.save(trainer, _checked(pl_module))

    def save(self, trainer: pl.Trainer, module: TrainingModule, metrics: dict[str, float] | None = None) -> None:
        """Write the state of all ranks; returns on every rank once it is on disk.

        Args: metrics: of the evaluation that this checkpoint follows.
        """
        with self.clock.within("checkpoint"):
            module.average_buffers()
            step = trainer.global_step
            trainer.save_checkpoint(self.store.stage(step) / STATE_FILE)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                self._commit(trainer, step, metrics or {})
            trainer.strategy.barrier()
        self.saved_step = step

    def _commit(self, trainer: pl.Trainer, step: int, metrics: dict[str, float]) -> None:
        # An unreadable file must not count, nor cost an older checkpoint its place.
        read_state(self.store.stage(step) / STATE_FILE)
        facts = {
            "epoch": trainer.current_epoch,
            "world_size": trainer.world_size,
            "strategy": type(trainer.strategy).__name__,
            "metrics": metrics,
            "best_step": self.best_step,
            "hash": identity_hash(self.config),
            "metrics_bytes": flush_metrics(self.run_dir),
        }
        self.store.commit(step, facts)
        if self.best_step is not None:
            self.store.link("best", self.store.path(self.best_step))
        if not self.recorded:
            # From here on a start at step 0 would lose progress, even if the checkpoints are gone.
            Record(self.run_dir).update(checkpointed=True)
            self.recorded = True
        self.store.prune(self.config.checkpoint.keep, self.best_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep which evaluation was the best, and whether this step's evaluation is still to come."""
        checkpoint[STATE_KEY] = {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "evaluation_pending": self.evaluation_pending,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore it."""
        state = checkpoint[STATE_KEY]
        self.best_value, self.best_step = state["best_value"], state["best_step"]
        self.saved_step = checkpoint["global_step"]
        max_steps = self.config.trainer.max_steps
        if state["evaluation_pending"] and self.saved_step == max_steps:
            # Lightning would not enter its loop again, and leave out the evaluation.
            trainer.fit_loop.epoch_loop.max_steps = max_steps + 1

    def _save_before_evaluation(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Save such that resuming begins with this step's evaluation."""
        self.evaluation_pending = True
        # Lightning repeats an evaluation whose first batch has begun. It would skip one that has not.
        progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        for tracker in (progress.total, progress.current):
            tracker.reset()
            tracker.ready = tracker.started = 1
        self.save(trainer, module)

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        best = self.best_value
        return best is None or (value < best if self.config.monitor.mode == "min" else value > best)

    def _due(self, trainer: pl.Trainer) -> bool:
        """Whether the cadence falls on this step, or max_steps ends training at it.

        By `on_train_end` Lightning has counted an epoch that max_steps cuts short as completed, so a longer run that
        goes on from there would leave out the rest of the epoch.
        """
        every, step = self.config.checkpoint.every_n_steps, trainer.global_step
        return (every is not None and step % every == 0) or step == self.config.trainer.max_steps

    def _stop(self, trainer: pl.Trainer) -> NoReturn:
        raise StopRequested(f"after step {trainer.global_step}, saved")

    def _evaluates(self, trainer: pl.Trainer) -> bool:
        """Whether Lightning evaluates right after this step; its own answer, since it has many cadences."""
        data: Any = getattr(trainer, "datamodule", None)
        fetcher = trainer.fit_loop._data_fetcher
        return fetcher is not None and "val" in data.sets and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _is_fitting(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _checked(module: pl.LightningModule) -> TrainingModule:
    if not isinstance(module, TrainingModule):
        raise TypeError(f"{type(module).__name__} is no TrainingModule")
    return module
