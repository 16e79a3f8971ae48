"""Progress of a run on rank 0: a bar on a terminal or in a notebook, and a line for each epoch and each evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from torch import Tensor

from trainer.collectives import all_reduce_sum
from trainer.data.batch import StepBatch
from trainer.module import StepSums
from trainer.observe.bar import Bar, open_bar
from trainer.observe.metrics import TrainingMetrics

# A redraw takes milliseconds.
REDRAW_EVERY_S = 1.0


class ProgressBar(pl.Callback):
    """The bar shows the values last logged; a line shows the mean training loss since the line before.

    Lightning's own bars read the loss from the device in every step. Here losses are summed on the device, and ranks
    add them up once per line.
    """

    def __init__(self, metrics: TrainingMetrics, console: Console) -> None:
        self.metrics, self.console = metrics, console
        self.bar: Bar | None = None
        self.redraw_at = 0.0
        # Epoch of the last step, counted from 1; Lightning's own is one further once the last epoch has ended.
        self.epoch = 0
        # Sums of all metrics of the steps since the last line, in the order of `metrics.names`.
        self.sums: Tensor | None = None
        self.num_samples = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar at the current step, which is not 0 in a resumed run."""
        if trainer.is_global_zero:
            self.bar = open_bar(self.console, int(trainer.estimated_stepping_batches), trainer.global_step)

    def on_train_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: StepSums,
        batch: StepBatch[Any],
        batch_idx: int,
    ) -> None:
        """Add the step's losses, and redraw the bar if it is due."""
        with self.metrics.clock.within("logging"):
            self._add(trainer, batch)

    def _add(self, trainer: pl.Trainer, batch: StepBatch[Any]) -> None:
        self.epoch = trainer.current_epoch + 1
        self.num_samples += batch.num_samples
        self.sums = self.metrics.of_step.clone() if self.sums is None else self.sums.add_(self.metrics.of_step)
        if self.bar is not None and time.monotonic() >= self.redraw_at:
            self.redraw_at = time.monotonic() + REDRAW_EVERY_S
            self._draw(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line with the metrics of an evaluation during training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            values = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
            self._print_line(trainer, values)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line for the steps since the last evaluation, where there are any."""
        if self.num_samples:
            self._print_line(trainer, {})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the terminal, also after an error."""
        if self.bar is not None:
            self._draw(trainer)
            self.bar.stop()
            self.bar = None

    def _print_line(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        """Print the training loss and `values`; called on all ranks."""
        shown = dict(sorted(values.items()))
        if self.sums is not None:
            totals = zip(self.metrics.names, all_reduce_sum(self.sums).tolist(), strict=True)
            losses = {f"train/{name}": total / self.num_samples for name, total in totals if name.startswith("loss")}
            shown = losses | shown
        self.sums, self.num_samples = None, 0
        if trainer.is_global_zero:
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            line = f"epoch {self.epoch}  step {trainer.global_step}  {metrics}"
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _draw(self, trainer: pl.Trainer) -> None:
        assert self.bar is not None
        latest = self.metrics.latest
        parts = [f"epoch {self.epoch or trainer.current_epoch + 1}"]
        parts += [f"{n.removeprefix('train/')} {v:.4f}" for n, v in latest.items() if n.startswith("train/loss")]
        if "perf/samples_per_s" in latest:
            parts.append(f"{latest['perf/samples_per_s']:,.0f} samples/s")
        self.bar.update(trainer.global_step, "  ".join(parts))
