"""Parameters that a part of training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import pytorch_lightning as pl
from torch import nn
from torch.optim import Optimizer

from trainer.config.callbacks import FreezeConfig
from trainer.errors import UserError, nearest


class Freeze(pl.Callback):
    """Drops the gradients of frozen parameters, so that an optimizer passes over them.

    requires_grad stays on: DistributedDataParallel would never reduce the gradients of parameters that it has found
    frozen. Whether a parameter is frozen follows from the step alone, so there is nothing to save.
    """

    def __init__(self, key: str, config: FreezeConfig) -> None:
        self.key, self.config = key, config
        self.parameters: list[nn.Parameter] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the parameters. Raises: UserError: a name fits none."""
        named = dict(pl_module.named_parameters())
        names = self._matching(list(named))
        self.parameters = [named[name] for name in names]
        if len(names) == len(named) and self.config.until_step is None and not self.config.from_step:
            raise UserError(f"{self.key}.parameters={self._typed()}: these are all, and nothing would be trained")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Lightning calls this before the module clips, so the norm is that of the gradients in use."""
        until = self.config.until_step
        if self.config.from_step <= trainer.global_step and (until is None or trainer.global_step < until):
            for parameter in self.parameters:
                parameter.grad = None

    def _matching(self, names: Sequence[str]) -> list[str]:
        for pattern in self.config.parameters:
            if not any(fnmatchcase(name, pattern) for name in names):
                advice = f"{pattern} fits no parameter; {nearest(pattern, names)}"
                raise UserError(f"{self.key}.parameters={self._typed()}: {advice}")
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.config.parameters)]

    def _typed(self) -> str:
        return f"[{','.join(self.config.parameters)}]"
