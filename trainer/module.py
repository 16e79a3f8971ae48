"""The Lightning module that every task extends: one call of `training_step` is one optimizer step.

Lightning's automatic optimisation counts micro-batches as batches, divides each loss by a constant whatever the size
of its micro-batch, and takes one optimizer. Here a batch is a step: cadences, checkpoints and resume count the same
thing on any number of ranks, losses are normalised over the global batch, and a GAN is an ordinary task. Precision,
the scaler and the optimizer's step remain Lightning's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypeVar

from trainer.collectives import all_reduce_sum
from trainer.config.schema import Config
from trainer.data.batch import B, MicroBatch, StepBatch
from trainer.optim.optimizers import build_optimizer, build_scheduler

# Sums over this rank's valid samples of a step, by name, all scalars on the device. `x` is logged as the mean train/x
# over the global batch; `num_x` is a count and is logged as the rate perf/x_per_s.
StepSums = dict[str, Tensor]


class NetworkStrategy:
    """Mixed into every strategy: a module's networks are wrapped, exchanged and cleared one by one.

    The defaults are those of a network that no other rank has a part of.
    """

    def accumulating(self, network: str, last: bool) -> AbstractContextManager[object]:
        """Around one forward and backward; gradients of `network` go to the other ranks in a step's `last` only."""
        return nullcontext()

    def clear_gradients(self, optimizer: Optimizer) -> None:
        """After a step."""
        optimizer.zero_grad(set_to_none=True)


ConfigT = TypeVar("ConfigT", bound=Config[Any, Any, Any], default=Config)


class TrainingModule(pl.LightningModule, Generic[ConfigT]):
    """A task's networks, its step and its metrics.

    A task implements `networks`, `training_step`, `evaluation_step` and `evaluation_metrics`; one with an ordinary
    loss extends `SupervisedModule` instead of writing `training_step`.
    """

    config: ConfigT

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config
        self.automatic_optimization = False
        # What to call in training: the network itself, or what the strategy has wrapped around it.
        self.wrapped: dict[str, nn.Module] = {}
        # Norm of each network's global gradient at the last logged step, before clipping.
        self.grad_norms: dict[str, Tensor] = {}
        # Learning rate that each network's last step has used.
        self.last_lrs: dict[str, float] = {}
        # Metrics of the last evaluation, with prefix; Lightning keeps them in single precision only.
        self.evaluated: dict[str, float] = {}

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by name; each is wrapped, sharded, compiled and optimised on its own. The last one's optimizer
        counts the step."""

    @abstractmethod
    def training_step(self, batch: StepBatch[Any], batch_idx: int) -> StepSums:
        """Do one optimizer step and return this rank's sums."""

    @abstractmethod
    def evaluation_step(self, batch: Any, metrics_prefix: str) -> None:
        """Add one evaluation batch to the metrics of "val" or "test"; only its first num_valid rows count."""

    @abstractmethod
    def evaluation_metrics(self, metrics_prefix: str) -> Mapping[str, float | Tensor]:
        """Metrics over all ranks since the last call, without prefix ("loss", "accuracy"); called on all ranks."""

    def setup(self, stage: str) -> None:
        """Lightning's hook: until a strategy wraps them, wrapped are the networks."""
        self.wrapped = dict(self.networks())

    # ---- building blocks of a step

    def accumulate(self, batch: StepBatch[B], network: str) -> Iterator[B]:
        """The micro-batches of a step; gradients of `network` are exchanged between ranks after the last one only."""
        for number, micro in enumerate(batch.micro_batches, 1):
            with self._strategy.accumulating(network, last=number == len(batch.micro_batches)):
                yield micro

    def global_mean(self, loss_sum: Tensor, batch: StepBatch[Any]) -> Tensor:
        """A summed loss, scaled so that the ranks' averaged gradients are those of the global batch's mean."""
        return loss_sum * (self.trainer.world_size / batch.num_samples)

    def optimize(self, network: str) -> None:
        """Clip, step, schedule and clear one network's gradients."""
        names = list(self.networks())
        position = names.index(network)
        optimizer = self.trainer.strategy._lightning_optimizers[position]
        self.last_lrs[network] = optimizer.optimizer.param_groups[0]["lr"]
        if position == len(names) - 1:
            optimizer.step()
        else:
            # Lightning counts each LightningOptimizer.step as a global step; only the last network's may count.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None, self)
        schedulers = self.trainer.lr_scheduler_configs
        if schedulers:
            schedulers[position].scheduler.step()  # pyright: ignore[reportCallIssue] - never ReduceLROnPlateau
        self._strategy.clear_gradients(optimizer.optimizer)

    @property
    def _strategy(self) -> NetworkStrategy:
        # Lightning's type knows nothing of it; every strategy of trainer.strategies is one.
        return cast(NetworkStrategy, self.trainer.strategy)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Lightning's hook, after gradients are unscaled: clip them, and keep their norm where it will be logged."""
        limit = self.config.trainer.gradient_clip_val
        logged = (self.trainer.global_step + 1) % self.config.trainer.log_every_n_steps == 0
        if limit is None and not logged:
            return
        gradients = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(gradients, limit if limit is not None else float("inf"))
        index = [o.optimizer for o in self.trainer.strategy._lightning_optimizers].index(optimizer)
        self.grad_norms[list(self.networks())[index]] = norm.detach()

    def average_buffers(self) -> None:
        """Replace floating-point buffers by their mean over ranks; called on all of them.

        Each rank's BatchNorm has seen its own share. Running averages are linear in what was seen, so evaluation and
        checkpoints then do not depend on the rank.
        """
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return
        buffers = [b for network in self.networks().values() for b in network.buffers() if b.is_floating_point()]
        if not buffers:
            return
        flat = all_reduce_sum(torch.cat([buffer.flatten() for buffer in buffers]))
        flat /= torch.distributed.get_world_size()
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    # ---- Lightning's hooks

    def on_validation_start(self) -> None:
        """Lightning's hook."""
        self.average_buffers()

    def configure_optimizers(self) -> Any:
        """One optimizer and schedule for each network, in the order of `networks`."""
        optimizers = [build_optimizer(self.parameter_groups(name), self.config) for name in self.networks()]
        total_steps = int(self.trainer.estimated_stepping_batches)
        schedulers = [
            {"scheduler": build_scheduler(optimizer, self.config.scheduler, total_steps), "interval": "step"}
            for optimizer in optimizers
        ]
        return optimizers, schedulers

    def parameter_groups(self, network: str) -> list[dict[str, Any]]:
        """Parameters of one network for its optimizer: decay for matrices, none for biases and norms."""
        trained = [p for p in self.networks()[network].parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim >= 2]},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Lightning's hook."""
        self.evaluation_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Lightning's hook."""
        self.evaluation_step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Lightning's hook."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Lightning's hook."""
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> None:
        metrics = {f"{prefix}/{name}": value for name, value in self.evaluation_metrics(prefix).items()}
        # evaluation_metrics has reduced over ranks already: sync_dist would average the same numbers once more.
        # Lightning would hand the loggers a step one behind that of the training lines.
        self.log_dict(metrics, logger=False, sync_dist=False)
        self.evaluated = {name: float(value) for name, value in metrics.items()}
        if not self.trainer.sanity_checking:
            values = {**self.evaluated, "epoch": float(self.trainer.current_epoch)}
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.trainer.global_step)


class SupervisedModule(TrainingModule[ConfigT]):
    """One network and a loss that is a sum over samples."""

    model: nn.Module

    def networks(self) -> Mapping[str, nn.Module]:
        """The one network."""
        return {"model": self.model}

    @abstractmethod
    def loss(self, network: nn.Module, micro: Any) -> tuple[Tensor, StepSums]:
        """Returns: (loss summed over the valid rows, other sums over the valid rows). `network` is what to call."""

    def training_step(self, batch: StepBatch[MicroBatch], batch_idx: int) -> StepSums:
        """Forward and backward of each micro-batch, then one step."""
        totals: StepSums = {}
        for micro in self.accumulate(batch, "model"):
            loss_sum, sums = self.loss(self.wrapped["model"], micro)
            self.manual_backward(self.global_mean(loss_sum, batch))
            for name, value in {"loss": loss_sum.detach(), **sums}.items():
                totals[name] = totals[name] + value if name in totals else value
        self.optimize("model")
        return totals
