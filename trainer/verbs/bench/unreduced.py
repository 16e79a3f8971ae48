"""The callback of `bench ddp` that leaves out what is measured: the all-reduce of gradients."""

from __future__ import annotations

import pytorch_lightning as pl
from torch.nn.parallel import DistributedDataParallel

from trainer.module import TrainingModule


class Unreduced(pl.Callback):
    """Ranks train on their shares by themselves: as within DDP's no_sync, for the whole run."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Switch the all-reduce of every network off."""
        assert isinstance(pl_module, TrainingModule)
        for network in pl_module.wrapped.values():
            if isinstance(network, DistributedDataParallel):
                network.require_backward_grad_sync = False
