"""Stop on SIGTERM, SIGINT or SIGUSR1 after a step that all ranks agree on, with a checkpoint.

Lightning's own handler runs a collective inside the signal handler, and its requeue saves in the middle of a step.
Here the handler sets a flag, and the ranks combine their flags after each step.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from trainer.collectives import Agreement
from trainer.errors import EXIT_STOPPED
from trainer.faults.signals import create_stop_file, handle_stop_signals


class StopRequested(Exception):
    """A signal asked the run to stop. The message says after which step, and whether that step is saved."""


class StopOnSignal(pl.Callback):
    """Sets `requested` on a signal; `agreed` says after a step or an evaluation batch whether any rank got one."""

    def __init__(self) -> None:
        self.requested = False
        self.training = False
        self.agreement = Agreement()
        self.install()

    def install(self) -> None:
        """Handle the stop signals from now on."""
        handle_stop_signals(self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            # A second Ctrl-C: the step in progress is lost. `print` is not reentrant.
            os.write(2, b"\nended within a step\n")
            raise SystemExit(EXIT_STOPPED)
        self.requested = True
        if not self.training:
            # Before the connections of this rank close, so that its peers know why.
            create_stop_file()
            raise StopRequested("before the first step")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle the signals again: Lightning has just installed handlers of its own."""
        self.training = True
        self.install()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the last exchange."""
        self.agreement.finish()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within the final test, which is repeated on resuming."""
        if self.agreed():
            raise StopRequested(f"after step {trainer.global_step}, saved")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the last exchange."""
        self.on_train_end(trainer, pl_module)

    def agreed(self) -> bool:
        """Whether to stop now; the same answer on all ranks, which all call this after the same steps and batches."""
        return self.agreement.reached(self.requested)
