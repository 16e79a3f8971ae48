"""The end of training after trainer.max_time.

Lightning's Timer broadcasts a flag after every step and waits for it, and forgets on resuming that it has ended a run.
"""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl

from trainer.collectives import Agreement


class TimeLimit(pl.Callback):
    """Ends training with an evaluation and a checkpoint, after the step in which a rank's clock passes the limit.

    reached: whether it has. The clock is saved with each checkpoint, so that a resumed run continues it.
    """

    def __init__(self, max_time: str) -> None:
        self.max_time = max_time
        self.limit_s = seconds(max_time)
        self.reached = False
        self.before_s = 0.0
        self.started = time.monotonic()
        self.agreement = Agreement()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; end again where the checkpoint was saved after the end was decided."""
        self.started = time.monotonic()
        if self.reached:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree on whether this was the last step. Called on all ranks."""
        if not self.reached and self.agreement.reached(self._elapsed_s() >= self.limit_s):
            self.reached = trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the last exchange."""
        self.agreement.finish()

    def state_dict(self) -> dict[str, Any]:
        """The clock, and whether the limit is reached."""
        return {"elapsed_s": self._elapsed_s(), "reached": self.reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the clock of an earlier attempt."""
        self.before_s, self.reached = state_dict["elapsed_s"], state_dict["reached"]

    def _elapsed_s(self) -> float:
        return self.before_s + time.monotonic() - self.started


def seconds(duration: str) -> int:
    """DD:HH:MM:SS in seconds."""
    days, hours, minutes, rest = map(int, duration.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
