"""Lightning's loop over epochs, with a resume at the end of an epoch corrected."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loops.fit_loop import _FitLoop


class EpochLoop(_FitLoop):
    """Counts the epoch that follows a resume from the last step of an epoch.

    Lightning 2.6 closes the epoch of such a checkpoint, and then goes on as if within it: the next epoch is not counted
    as begun and its hooks are not called. A second resume within that epoch then trains one epoch too many.
    """

    def reset(self) -> None:
        """Lightning's hook, before the first epoch of an attempt."""
        super().reset()
        epochs: Any = self.epoch_progress.current
        if self.restarted_mid_epoch and epochs.processed == epochs.started:
            self.reset_restart_stage()
