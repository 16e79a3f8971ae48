"""When checkpoints are saved: at a cadence, at evaluations, at the end, and when a stop is requested."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl

from trainer.checkpoint.retention import Retention
from trainer.checkpoint.shard_exchange import ShardExchange
from trainer.checkpoint.writing import CheckpointWriter, Save
from trainer.clock import StepClock
from trainer.collectives import Agreement, decide_on_rank_0
from trainer.config.identity import identity_hash
from trainer.config.schema import Config
from trainer.errors import UserError, nearest
from trainer.faults.stop import StopOnSignal, StopRequested
from trainer.module import TrainingModule
from trainer.run.metrics_file import metrics_size
from trainer.run.record import now

STATE_KEY = "checkpointing"
# After a write that the storage has refused.
RETRY_AFTER_STEPS = 10


class Checkpointing(pl.Callback):
    """Saves between steps only, so that a checkpoint's step is complete and the next one has not begun.

    Lightning's ModelCheckpoint neither flushes nor verifies, and with save_top_k=1 deletes the old file first.

    best: (value, step) of the best evaluations so far, the best one first. All decisions are functions of the step, of
    metrics, which are equal on all ranks, and of what the ranks have agreed on, never of the file system.
    """

    def __init__(self, config: Config, run_dir: Path, stop: StopOnSignal, clock: StepClock) -> None:
        self.config, self.run_dir, self.stop, self.clock = config, run_dir, stop, clock
        self.writer = self._build_writer(rank=0, world_size=1)
        self.warned_step: int | None = None
        self.best: list[tuple[float, int]] = []
        # Those whose checkpoints are on disk.
        self.saved_best: list[tuple[float, int]] = []
        self.saved_step: int | None = None
        # Of the save that may still be in flight.
        self.pending_step: int | None = None
        self.retry_step: int | None = None
        self.elapsed, self.saved_at_s = Agreement(), 0.0
        self.stopping = self.evaluation_pending = self.time_is_up = False

    @property
    def best_step(self) -> int | None:
        """Step of the best evaluation so far; None where there was none."""
        return self.best[0][1] if self.best else None

    def _build_writer(self, rank: int, world_size: int) -> CheckpointWriter:
        options = self.config.checkpoint
        sharded = options.format == "sharded"
        exchange = ShardExchange(rank, world_size, self.config.launch.timeout_s) if sharded else None
        retention = Retention(options.keep, options.keep_every_h)
        return CheckpointWriter(self.run_dir, retention, options.asynchronous, exchange)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Know this rank's part."""
        self.writer = self._build_writer(trainer.global_rank, trainer.world_size)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the seconds to the first save from here."""
        self.saved_at_s = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the cadence, or stop; a step that is evaluated is saved after its evaluation."""
        # Which waits for the slowest rank's last step.
        with self.clock.within("communication"):
            self.stopping = self.stop.agreed()
            every_s = self.config.checkpoint.every_s
            if every_s is not None:
                self.time_is_up |= self.elapsed.reached(time.monotonic() - self.saved_at_s >= every_s)
        self._look_at_write(trainer)
        if (self.stopping or self._due(trainer)) and not self._evaluates(trainer):
            self.save(trainer, _checked(pl_module), last=self.stopping)
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
        self._settle(trainer)
        self.evaluation_pending = False
        trainer.fit_loop.epoch_loop.max_steps = self.config.trainer.max_steps
        better = self._is_better(module.evaluated[monitor.metric], trainer.global_step)
        if self.config.checkpoint.at_evaluation or self._due(trainer) or better:
            self.save(trainer, module, module.evaluated)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state, unless it has been."""
        self.elapsed.finish()
        self._settle(trainer)
        if trainer.global_step != self.saved_step:
            self.save(trainer, _checked(pl_module), last=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let a write in flight end, so that no process ends within it; a second Ctrl-C ends at once."""
        if not isinstance(exception, SystemExit) and self.writer.in_flight is not None:
            self.writer.in_flight.exception()

    def save(
        self, trainer: pl.Trainer, module: TrainingModule, metrics: dict[str, float] | None = None, last: bool = False
    ) -> None:
        """Write the state of all ranks. Returns on every rank once it is on disk, or copied if it is written beside
        training.

        Args: metrics: of the evaluation that this checkpoint follows. last: whether training ends with it, which then
            waits for it in any case.
        Raises: UserError: the storage has refused it, or the one before, and training must not go on.
        """
        self._settle(trainer)
        module.settle_updates()
        with self.clock.within("checkpoint"):
            module.average_buffers()
            # On all ranks: each has a part of it.
            state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            shards = self.writer.shards
            if shards is not None:
                shards.token = decide_on_rank_0(lambda: self.writer.clear(trainer.global_step))
            if trainer.is_global_zero or shards is not None:
                facts = self._facts(trainer, metrics or {})
                self.writer.begin(Save(trainer.global_step, state, facts, [step for _, step in self.best]))
            self.pending_step = self.saved_step = trainer.global_step
            self.saved_at_s, self.time_is_up = time.monotonic(), False
            if last or not self.config.checkpoint.asynchronous:
                self._settle(trainer, last)

    def _facts(self, trainer: pl.Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        return {
            "time": now(),
            "epoch": trainer.current_epoch,
            "world_size": trainer.world_size,
            "strategy": type(trainer.strategy).__name__,
            "metrics": metrics,
            "best_step": self.best_step,
            "hash": identity_hash(self.config),
            "metrics_bytes": metrics_size(self.run_dir),
        }

    # ---- errors of the storage

    def _settle(self, trainer: pl.Trainer, last: bool = False) -> None:
        """Wait for the save in flight, if there is one, and agree on how it went. Called on all ranks."""
        if self.pending_step is None:
            return
        with self.clock.within("checkpoint"):
            if not trainer.is_global_zero:
                # Rank 0 knows of a failure.
                self.writer.wait()
            failure = decide_on_rank_0(self.writer.wait)
        step, self.pending_step = self.pending_step, None
        if failure is None:
            self.saved_best, self.retry_step = self.best, None
            return
        # What is not on disk is neither the newest nor the best.
        self.best, self.saved_step = self.saved_best, None
        self.retry_step = trainer.global_step + RETRY_AFTER_STEPS
        if last or self.config.checkpoint.on_write_error == "stop":
            raise self._refused(step, failure)
        if trainer.is_global_zero:
            self._warn(step, failure)

    def _look_at_write(self, trainer: pl.Trainer) -> None:
        """Say at once where the write in flight has failed, of which rank 0 alone knows; if it raises, all ranks end.

        What follows from a failure is agreed on when the write is settled.
        """
        failure = self.writer.failure() if trainer.is_global_zero else None
        if failure is None or self.pending_step is None:
            return
        if self.config.checkpoint.on_write_error == "stop":
            raise self._refused(self.pending_step, failure)
        self._warn(self.pending_step, failure)

    def _warn(self, step: int, failure: str) -> None:
        if step != self.warned_step:
            print(f"warning: the checkpoint of step {step} is not written ({failure})", file=sys.stderr)
        self.warned_step = step

    def _refused(self, step: int, failure: str) -> UserError:
        return UserError(
            f"the checkpoint of step {step} cannot be written: {failure}",
            "the checkpoints before it are as they were; the same command resumes from there",
            "checkpoint.on_write_error=continue would train on and try again",
        )

    # ---- what is saved

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep which evaluation was the best, and whether this step's evaluation is still to come."""
        checkpoint[STATE_KEY] = {
            "best": [list(pair) for pair in self.best],
            "evaluation_pending": self.evaluation_pending,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore it."""
        state = checkpoint[STATE_KEY]
        # Older checkpoints know of one.
        saved = state["best"] if "best" in state else [[state["best_value"], state["best_step"]]]
        self.best = self.saved_best = [(value, step) for value, step in saved if step is not None]
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
        self.save(trainer, module, last=True)

    def _is_better(self, value: float, step: int) -> bool:
        """Whether an evaluation is one of the best so far, which then include it; of equals the earlier is."""
        if not math.isfinite(value):
            return False
        sign = 1 if self.config.monitor.mode == "min" else -1
        ordered = sorted([*self.best, (value, step)], key=lambda pair: sign * pair[0])
        self.best = ordered[: self.config.checkpoint.keep_best]
        return (value, step) in self.best

    def _due(self, trainer: pl.Trainer) -> bool:
        """Whether the cadence falls on this step, or max_steps ends training at it.

        By `on_train_end` Lightning has counted an epoch that max_steps cuts short as completed, so a longer run that
        goes on from there would leave out the rest of the epoch.
        """
        every, step = self.config.checkpoint.every_n_steps, trainer.global_step
        at_cadence = (every is not None and step % every == 0) or self.time_is_up
        return at_cadence or step == self.config.trainer.max_steps or step == self.retry_step

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
