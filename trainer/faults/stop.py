"""Stop on SIGTERM, SIGINT or SIGUSR1 at the end of a step that all ranks agree on, with a checkpoint, resumable.

Lightning's own handler runs a collective inside the signal handler, and its requeue saves in the middle of a step;
here the handler sets a flag, and between two steps the ranks compare their flags.
"""

from __future__ import annotations

import signal
from types import FrameType

import pytorch_lightning as pl
import torch

from trainer.collectives import all_reduce_sum
from trainer.faults.signals import STOP_SIGNALS


class StopRequested(Exception):
    """Somebody asked the run to stop; its state is saved as far as there is any."""


class StopOnSignal(pl.Callback):
    """Sets `requested` on a signal; `agreed` tells at a step's end whether any rank was asked."""

    def __init__(self, check_every_n_steps: int) -> None:
        self.check_every_n_steps = check_every_n_steps
        self.requested = False
        self.training = False
        self.install()

    def install(self) -> None:
        """Take the signals over."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self.training:
            raise StopRequested(f"{signal.Signals(number).name} before the first step")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has just installed its own handlers."""
        self.training = True
        self.install()

    def agreed(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether to stop after the step just done; the same answer on all ranks.

        One process looks at every step. Several ranks compare only every so often, since comparing waits for the GPU.
        """
        if trainer.world_size == 1:
            return self.requested
        if trainer.global_step % self.check_every_n_steps:
            return False
        flag = torch.tensor(float(self.requested), device=pl_module.device)
        return bool(all_reduce_sum(flag).item())
