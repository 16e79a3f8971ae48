"""When checkpoints are taken: at a cadence, at evaluations, at the end, and when the run is asked to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from trainer.checkpoint.store import CheckpointStore
from trainer.config.schema import Config
from trainer.faults.stop import StopOnSignal, StopRequested
from trainer.module import TrainingModule
from trainer.run.files import STATE_FILE


class Checkpointing(pl.Callback):
    """Saves between steps only, so a checkpoint's step is fully done and the next one has not begun.

    Lightning's ModelCheckpoint neither flushes nor verifies, and with save_top_k=1 deletes the old file first.
    """

    def __init__(self, config: Config, run_dir: Path, stop: StopOnSignal) -> None:
        self.config, self.stop = config, stop
        self.store = CheckpointStore(run_dir)
        self.best_value: float | None = None
        self.stopping = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the cadence or a stop asks for it.

        A step that is evaluated is saved after its evaluation: Lightning would not make up for it on resuming.
        """
        module = _checked(pl_module)
        self.stopping = self.stop.agreed(trainer, module)
        if (self.stopping or self._due(trainer)) and not self._evaluates(trainer):
            self.save(trainer, module)
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after an evaluation, and remember the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.config.monitor.metric)
        better = value is not None and self._is_better(float(value))
        if self.config.checkpoint.at_evaluation or self._due(trainer) or better or self.stopping:
            self.save(trainer, _checked(pl_module), mark_best=better)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The final state."""
        if trainer.global_step not in [int(path.name.removeprefix("step-")) for path in self.store.checkpoints()]:
            self.save(trainer, _checked(pl_module))

    def save(self, trainer: pl.Trainer, module: TrainingModule, mark_best: bool = False) -> None:
        """Write the state of all ranks; returns on every rank once it is on disk."""
        module.average_buffers()
        step = trainer.global_step
        trainer.save_checkpoint(self.store.stage(step) / STATE_FILE)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            facts = {
                "epoch": trainer.current_epoch,
                "world_size": trainer.world_size,
                "strategy": type(trainer.strategy).__name__,
                "metrics": metrics,
            }
            checkpoint = self.store.commit(step, facts)
            if mark_best:
                self.store.mark_best(checkpoint)
            self.store.prune(self.config.checkpoint.keep)
        trainer.strategy.barrier()

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook."""
        return {"best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook."""
        self.best_value = state_dict["best_value"]

    def _is_better(self, value: float) -> bool:
        best, mode = self.best_value, self.config.monitor.mode
        better = best is None or (value < best if mode == "min" else value > best)
        if better:
            self.best_value = value
        return better

    def _due(self, trainer: pl.Trainer) -> bool:
        every = self.config.checkpoint.every_n_steps
        return every is not None and trainer.global_step % every == 0

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self.stopping:
            raise StopRequested(f"on request after step {trainer.global_step}")

    def _evaluates(self, trainer: pl.Trainer) -> bool:
        """Whether Lightning evaluates right after this step; its own answer, since it has many cadences."""
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        return fetcher is not None and loop._should_check_val_fx(fetcher)


def _checked(module: pl.LightningModule) -> TrainingModule:
    if not isinstance(module, TrainingModule):
        raise TypeError(f"{type(module).__name__} is no TrainingModule")
    return module
