"""The progress bar on rank 0: loss, samples/s and time left, redrawn twice a second at most."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.observe.metrics import TrainingMetrics

REDRAW_EVERY_S = 0.5


class ProgressBar(pl.Callback):
    """A bar on a terminal, a line an evaluation elsewhere. It only reads what was logged anyway.

    Lightning's own bars read the loss from the device in every step.
    """

    def __init__(self, metrics: TrainingMetrics, console: Console) -> None:
        self.metrics, self.console = metrics, console
        self.progress: Progress | None = None
        self.redraw_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar where a resumed run stands."""
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # Redrawn by the training loop itself: rich's refresh thread would compete for the interpreter.
        self.progress = Progress(*columns, console=self.console, auto_refresh=False)
        self.progress.start()
        self.progress.add_task("", total=int(trainer.estimated_stepping_batches), completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw when it is time."""
        if self.progress is not None and time.monotonic() >= self.redraw_at:
            self.redraw_at = time.monotonic() + REDRAW_EVERY_S
            self._draw(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One line an evaluation, above the bar."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in sorted(values.items()))
        loss = self.metrics.latest.get("train/loss")
        training = f"train/loss {loss:.4f}  " if loss is not None else ""
        line = f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}  {training}{shown}"
        self.console.print(line, soft_wrap=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the terminal as it was, also after an error."""
        if self.progress is not None:
            self._draw(trainer)
            self.progress.stop()
            self.progress = None

    def _draw(self, trainer: pl.Trainer) -> None:
        assert self.progress is not None
        latest = self.metrics.latest
        parts = [f"epoch {trainer.current_epoch + 1}"]
        parts += [f"{n.removeprefix('train/')} {v:.4f}" for n, v in latest.items() if n.startswith("train/loss")]
        if "perf/samples_per_s" in latest:
            parts.append(f"{latest['perf/samples_per_s']:,.0f} samples/s")
        self.progress.update(self.progress.task_ids[0], completed=trainer.global_step, description="  ".join(parts))
        self.progress.refresh()
