"""Averages of weights: EMA and SWA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from trainer.config.callbacks import EMAConfig, SWAConfig
from trainer.module import TrainingModule

STATE_KEY = "weight_average"
Weights = dict[str, Tensor]


class WeightAverage(pl.Callback):
    """Evaluates and saves an average of the weights of all networks; training continues with the weights themselves.

    A checkpoint's state_dict holds the average, so whatever reads weights from it uses that; the weights themselves are
    beside it for resuming. Lightning's WeightAveraging copies the whole module with its data, and torch's AveragedModel
    reads its counter from the device at each update.

    averages: by name in the module's state_dict; empty until the first update. trained: the weights themselves while
    the networks hold the average, else empty.
    """

    def __init__(self, config: EMAConfig | SWAConfig) -> None:
        self.config = config
        self.averages: Weights = {}
        self.trained: Weights = {}
        self.num_averaged = 0
        update: Callable[..., None] = (
            get_ema_multi_avg_fn(config.decay) if isinstance(config, EMAConfig) else get_swa_multi_avg_fn()
        )
        self.update = update

    # ---- training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move a loaded average to the weights' device."""
        tensors = self._tensors(pl_module)
        self.averages = {name: average.to(tensors[name].device) for name, average in self.averages.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after a step that is due; the first update takes the weights as they are."""
        if not self._is_due(trainer):
            return
        if isinstance(self.config, SWAConfig):
            # Each rank has tracked statistics of its own samples; the next step restores them.
            _checked(pl_module).average_buffers()
        tensors = self._tensors(pl_module)
        if self.num_averaged:
            names = list(tensors)
            self.update([self.averages[n] for n in names], [tensors[n].detach() for n in names], self.num_averaged)
        else:
            self.averages = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.num_averaged += 1

    def _is_due(self, trainer: pl.Trainer) -> bool:
        config, step = self.config, trainer.global_step
        if isinstance(config, EMAConfig):
            return step > config.start_step and (step - config.start_step) % config.every_n_steps == 0
        total = int(trainer.estimated_stepping_batches)
        start = math.ceil(config.start_fraction * total)
        if step <= start:
            return False
        if config.every_n_steps is None:
            return trainer.is_last_batch or step == total
        return (step - start) % config.every_n_steps == 0

    # ---- evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the networks the average; Lightning calls this before the module averages its buffers over ranks."""
        if not self.averages:
            return
        if isinstance(self.config, SWAConfig):
            _checked(pl_module).average_buffers()
        tensors = self._tensors(pl_module)
        self.trained = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        _copy(self.averages, tensors)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give them their own weights back, before the evaluation's checkpoint is saved."""
        _copy(self.trained, self._tensors(pl_module))
        self.trained = {}

    # ---- checkpoints

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the weights, and the weights beside it."""
        state = checkpoint["state_dict"]
        trained = self.trained or {name: state[name] for name in self.averages}
        checkpoint[STATE_KEY] = {"num_averaged": self.num_averaged, "trained": trained}
        checkpoint["state_dict"] = {**state, **self.averages}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue the average. Lightning has loaded it into the networks, which get their own weights.

        A state of another run, which this one continues, may hold none.
        """
        saved = checkpoint.get(STATE_KEY)
        if saved is None:
            return
        self.num_averaged = saved["num_averaged"]
        self.averages = {name: checkpoint["state_dict"][name].clone() for name in saved["trained"]}
        _copy(saved["trained"], self._tensors(pl_module))

    def _tensors(self, module: pl.LightningModule) -> Weights:
        """What is averaged, by name in the module's state_dict: parameters, and for SWA floating-point buffers."""
        networks = _checked(module).networks().values()
        owned = {id(tensor) for network in networks for tensor in network.state_dict(keep_vars=True).values()}
        with_buffers = isinstance(self.config, SWAConfig)
        return {
            name: tensor
            for name, tensor in module.state_dict(keep_vars=True).items()
            if id(tensor) in owned
            and (isinstance(tensor, nn.Parameter) or (with_buffers and tensor.is_floating_point()))
        }


@torch.no_grad()
def _copy(source: Weights, target: Weights) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)


def _checked(module: pl.LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module
