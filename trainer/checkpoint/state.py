"""What a checkpoint needs beyond Lightning's for the next step to be the one that would have followed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import TorchCheckpointIO

STATE_FILE = "state.ckpt"


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes straight into the staging directory and reads tensors only.

    Lightning's own stages in $TMPDIR and moves, which across devices is a copy that a kill can cut short; the store
    around this one is atomic already.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one file; an error is raised, not logged."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        """Read one file without running code from it."""
        return torch.load(path, map_location=map_location, weights_only=True)


class RandomState(pl.Callback):
    """Every rank's generators, of which Lightning saves none; restored after everything else is set up."""

    def __init__(self) -> None:
        self.loaded: list[dict[str, Any]] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the generators of all ranks; called on all of them."""
        states: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, capture_random_state())
        else:
            states = [capture_random_state()]
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep them until training starts: setting up draws numbers too."""
        self.loaded = checkpoint["random_states"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore this rank's own. A run resumed on more ranks than before leaves the new ones as seeded."""
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
    """Undo everything drawn since `capture_random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
