"""What a strategy does for each network of a module, and who decides whether an update is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

Hook = Callable[..., Any]


def overridden(callbacks: Iterable[pl.Callback], name: str) -> list[Hook]:
    """The hooks of this name that do anything, in the order of the callbacks."""
    hooks = [getattr(callback, name) for callback in callbacks]
    return [hook for hook in hooks if getattr(hook, "__func__", None) is not getattr(pl.Callback, name)]


class StepOutOfMemory(RuntimeError):
    """A training step did not fit into this rank's memory."""


class UpdateGuard:
    """Decides whether an update is applied. This one applies all; see trainer/faults/nonfinite.py.

    checks: the norm of the gradient is needed before every update.
    """

    checks = False

    def marked(self, loss: Tensor) -> Tensor:
        """A loss as it is differentiated. Shapes: scalar -> scalar."""
        return loss

    def allows(self, optimizer: Optimizer) -> bool:
        """Whether to apply the update; the same answer on all ranks, which all ask."""
        return True

    def found(self, optimizer: Optimizer) -> None:
        """The gradient is not finite, and the strategy has skipped the update. Called on all ranks."""

    def settle(self) -> None:
        """Wait for what the device has not yet answered; called before anything of the last step is kept."""


class NetworkStrategy:
    """Mixed into every strategy: handles each network of a module separately. The defaults are for full networks.

    guard: of the run. whole_networks: each rank holds whole networks, and so can differentiate alone.
    """

    guard = UpdateGuard()
    whole_networks = True

    def accumulating(self, network: str, last: bool) -> AbstractContextManager[object]:
        """Wrap one forward and backward; gradients of `network` are reduced over ranks in a step's `last` one only."""
        return nullcontext()

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        """Lightning's hook. Raises: StepOutOfMemory."""
        try:
            return super().training_step(*arguments, **options)  # pyright: ignore[reportAttributeAccessIssue]
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise StepOutOfMemory(str(error).split("\n")[0]) from error

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning's hook: scale float16 losses and compute gradients, with the hooks that callbacks override."""
        trainer, module = self._trained
        scaler = getattr(self._precision, "scaler", None)
        loss = closure_loss if scaler is None else scaler.scale(closure_loss)
        for hook in overridden(trainer.callbacks, "on_before_backward"):
            hook(trainer, module, loss)
        module.on_before_backward(loss)
        loss.backward(*args, **kwargs)
        for hook in overridden(trainer.callbacks, "on_after_backward"):
            hook(trainer, module)
        module.on_after_backward()
        return closure_loss

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: pl.LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Lightning's hook, likewise; where float16 gradients have a scale, Lightning's own."""
        if getattr(self._precision, "scaler", None) is not None:
            return super().optimizer_step(optimizer, closure, model, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        trainer, module = self._trained
        for hook in overridden(trainer.callbacks, "on_before_optimizer_step"):
            hook(trainer, module, optimizer)
        module.on_before_optimizer_step(optimizer)
        return optimizer.step(**kwargs) if self.guard.allows(optimizer) else None

    @property
    def _trained(self) -> tuple[Any, pl.LightningModule]:
        module = cast(Strategy, self).lightning_module
        assert module is not None
        return module.trainer, module

    @property
    def _precision(self) -> Any:
        return cast(Strategy, self).precision_plugin

    def gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients together, a scalar that is the same on all ranks."""
        return nn.utils.get_total_norm(gradients)

    def clear_gradients(self, optimizer: Optimizer) -> None:
        """Drop the gradients after a step; keeping zeros in their place would cost memory."""
        optimizer.zero_grad(set_to_none=True)
