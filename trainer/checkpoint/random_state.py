"""Random generators of every rank, of which Lightning saves none."""

from __future__ import annotations

import io
from typing import Any

import pytorch_lightning as pl
import torch

from trainer.collectives import all_gather_bytes
from trainer.generators import capture_random_state, restore_random_state


class RandomState(pl.Callback):
    """Saves the generators of every rank, and restores each rank's own after everything else is set up."""

    def __init__(self) -> None:
        self.loaded: list[dict[str, Any]] | None = None
        self.before_evaluation: dict[str, Any] | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the generators: an evaluation that a stop interrupts is repeated with the same numbers."""
        self.before_evaluation = capture_random_state()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget them: what is saved from here on includes the evaluation."""
        self.before_evaluation = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the generators of all ranks; called on all of them."""
        buffer = io.BytesIO()
        torch.save(self.before_evaluation or capture_random_state(), buffer)
        gathered = all_gather_bytes(buffer.getvalue())
        checkpoint["random_states"] = [torch.load(io.BytesIO(data), weights_only=True) for data in gathered]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the loaded generators until training starts, since setting up draws numbers too."""
        self.loaded = checkpoint["random_states"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore this rank's generators. Ranks that the saved run did not have keep theirs as seeded."""
        if self.loaded is not None and trainer.global_rank < len(self.loaded):
            restore_random_state(self.loaded[trainer.global_rank])
        self.loaded = None
