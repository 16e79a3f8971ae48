"""Random generators of every rank, of which Lightning saves none."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from trainer.collectives import all_gather_bytes


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


def capture_random_state() -> dict[str, Any]:
    """Generators of Python, NumPy, torch and the GPU, in plain containers that load without running code."""
    version, internal, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = legacy
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set all generators to a captured state."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
