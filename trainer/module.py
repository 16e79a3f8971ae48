"""The Lightning module that every task extends: one call of `training_step` is one optimizer step.

Lightning's automatic optimisation counts micro-batches as batches, divides each loss by a constant whatever the size
of its micro-batch, and takes one optimizer. Here a batch is a step: cadences, checkpoints and resume count the same
thing on any number of ranks, losses are normalised over the global batch, and a GAN is an ordinary task. Precision,
the scaler and the optimizer's step remain Lightning's.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypeVar

from trainer.clock import StepClock
from trainer.collectives import all_gather_bytes, all_reduce_sum, has_peers
from trainer.config.schema import Config
from trainer.data.batch import B, MicroBatch, StepBatch
from trainer.network_strategy import NetworkStrategy
from trainer.optim.hidden import find_outer_layers, hidden_weights
from trainer.optim.optimizers import build_optimizer, build_scheduler
from trainer.own_metrics import OwnMetrics

# Sums over this rank's valid samples of a step, by name, all scalars on the device. `x` is logged as the mean train/x
# over the global batch; `num_x` is a count and is logged as the rate perf/x_per_s.
StepSums = dict[str, Tensor]


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
        # The engine puts the run's clock in its place.
        self.clock = StepClock()
        # What to call in training: the network itself, or the strategy's wrapper around it.
        self.wrapped: dict[str, nn.Module] = {}
        # Norm of each network's global gradient at the last logged step, before clipping.
        self.grad_norms: dict[str, Tensor] = {}
        # Learning rate of each network's last step.
        self.last_lrs: dict[str, float] = {}
        # Whether an update of the last step was skipped, so that the step counts in no metric.
        self.step_is_skipped = False
        # Updates of the step in progress so far, applied or skipped.
        self.num_updates = 0
        # Metrics of the last evaluation, with prefix; Lightning keeps them in single precision only.
        self.evaluated: dict[str, float] = {}
        # Metrics of the user's own; a task that feeds them builds them.
        self.own_metrics: OwnMetrics | None = None
        # This rank's own buffers while the networks hold the mean over ranks; None while they hold their own.
        self.own_buffers: dict[str, Tensor] | None = None

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by name; each is wrapped, sharded, compiled and optimised separately. The last one's optimizer
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

    def own_names(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of a file that init.from names, under this module's names; override it to take those of others."""
        return weights

    def on_weights_loaded(self, sha256: str, new: Sequence[str]) -> None:
        """The networks hold the weights of init.from. Called on all ranks, before the optimizers are built.

        Args: sha256: of the file. new: names of the tensors that start at random values, such as those of a new head.
        """

    def write_results(self, run_dir: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the trained model in further forms beside model.safetensors. Called on rank 0, at the end of a run.

        Args: weights: full tensors by their names in this module.
        """

    def update_own_metrics(self, metrics_prefix: str, outputs: Tensor, labels: Tensor) -> None:
        """Add the valid rows of an evaluation batch to the user's own metrics. Shapes: outputs (B, K), labels (B,)."""
        if self.own_metrics is not None:
            self.own_metrics.update(metrics_prefix, outputs, labels)

    def setup(self, stage: str) -> None:
        """Lightning's hook, before the strategy wraps the networks: without a wrapper they are called as they are."""
        self.wrapped = dict(self.networks())

    # ---- building blocks of a step

    def accumulate(self, batch: StepBatch[B], network: str) -> Iterator[B]:
        """The micro-batches of a step; gradients of `network` are reduced over ranks after the last one only."""
        for number, micro in enumerate(batch.micro_batches, 1):
            with self._strategy.accumulating(network, last=number == len(batch.micro_batches)):
                self.clock.enter("forward", network)
                yield micro
        self.clock.enter("other")

    def global_mean(self, loss_sum: Tensor, batch: StepBatch[Any]) -> Tensor:
        """Scale a summed loss so that gradients averaged over ranks are those of the global batch's mean loss."""
        return loss_sum * (self.trainer.world_size / batch.num_samples)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's; what is left of it once all gradients are computed is the wait for other ranks."""
        with self.clock.within("backward", self.clock.network):
            if has_peers():
                loss.register_hook(self._announce_communication)
            super().manual_backward(self._strategy.guard.marked(loss), *args, **kwargs)

    def _announce_communication(self, gradient: Tensor) -> None:
        """Called as a backward pass begins: the engine calls back at its end, in the order in which it was asked, and
        DDP and FSDP2 ask later, to wait for their collectives."""
        clock, network = self.clock, self.clock.network
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(lambda: clock.enter("communication", network))

    def optimize(self, network: str) -> None:
        """Clip, step, schedule and clear one network's gradients."""
        with self.clock.within("optimizer", network):
            self._optimize(network)

    def _optimize(self, network: str) -> None:
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
        self.num_updates += 1

    def settle_updates(self) -> None:
        """Wait until it is known that all updates so far were finite. Raises: NonFinite: one was not."""
        self._strategy.guard.settle()

    @property
    def _strategy(self) -> NetworkStrategy:
        # Lightning does not know this type; every strategy of trainer.strategies is one.
        return cast(NetworkStrategy, self.trainer.strategy)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Lightning's hook: clip the gradients and keep their norm for the logs.

        Lightning has unscaled float16 gradients by now, except those of a fused optimizer, which does it in its step.
        """
        limit = self.config.trainer.gradient_clip_val
        logged = (self.trainer.global_step + 1) % self.config.trainer.log_every_n_steps == 0
        if limit is None and not logged and not self._strategy.guard.checks:
            return
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = self._strategy.gradient_norm([p.grad for p in trained if p.grad is not None]).detach()
        if limit is not None:
            nn.utils.clip_grads_with_norm_(trained, limit, norm)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm = norm / scaler.get_scale()
        self.grad_norms[self.network_of(optimizer)] = norm

    def network_of(self, optimizer: Optimizer) -> str:
        """The name of the network that an optimizer updates."""
        index = [o.optimizer for o in self.trainer.strategy._lightning_optimizers].index(optimizer)
        return list(self.networks())[index]

    # ---- buffers that differ between ranks

    def average_buffers(self) -> None:
        """Replace floating-point buffers by their mean over ranks until the next step; called on all ranks.

        Without synchronised BatchNorm each rank tracks the statistics of its own samples. Running averages are linear
        in these, so evaluation and checkpoints that use the mean do not depend on the rank. Training continues from
        each rank's own buffers: how often a run is evaluated, saved or stopped does not change it.
        """
        if self.own_buffers is not None or not has_peers():
            return
        buffers = self._tracked_buffers()
        self.own_buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        if not buffers:
            return
        flat = all_reduce_sum(torch.cat([buffer.flatten() for buffer in buffers.values()]))
        flat /= torch.distributed.get_world_size()
        for buffer, mean in zip(buffers.values(), flat.split([b.numel() for b in buffers.values()]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def _tracked_buffers(self) -> dict[str, Tensor]:
        """Floating-point buffers that belong to the state; others, such as rotary frequencies, are constants."""
        return {
            f"{network}.{name}": value
            for network, module in self.networks().items()
            for name, value in module.state_dict(keep_vars=True).items()
            if not isinstance(value, nn.Parameter) and value.is_floating_point()
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: a step starts from this rank's own buffers."""
        self.restore_own_buffers()

    def restore_own_buffers(self) -> None:
        """Undo `average_buffers`; a step starts from here."""
        if self.own_buffers is not None:
            for name, buffer in self._tracked_buffers().items():
                buffer.copy_(self.own_buffers[name])
            self.own_buffers = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: add every rank's own buffers, {name: tensor} by rank, beside the mean in the state_dict."""
        assert self.own_buffers is not None or not has_peers(), "average_buffers comes before a checkpoint"
        own = self.own_buffers or {}
        buffer = io.BytesIO()
        torch.save({name: tensor.cpu() for name, tensor in own.items()}, buffer)
        gathered = all_gather_bytes(buffer.getvalue())
        checkpoint["rank_buffers"] = [torch.load(io.BytesIO(data), weights_only=True) for data in gathered]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: keep this rank's own buffers for the next step; another world size starts from the mean."""
        saved = checkpoint["rank_buffers"]
        if len(saved) == self.trainer.world_size > 1:
            self.own_buffers = saved[self.trainer.global_rank]

    # ---- Lightning's hooks

    def on_validation_start(self) -> None:
        """Lightning's hook: all ranks evaluate the same network."""
        self.average_buffers()

    def configure_optimizers(self) -> Any:
        """One optimizer and schedule for each network, in the order of `networks`."""
        optimizers = [
            build_optimizer(self.parameter_groups(name), self.config, hidden_weights(network, self.outer_layers(name)))
            for name, network in self.networks().items()
        ]
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

    def outer_layers(self, network: str) -> Iterable[nn.Module]:
        """Input and output layers of one network, which Muon leaves to AdamW; embeddings need not be named.

        By default the first and the last layer with a weight matrix, in the order in which the network registers
        them. Override it for a network that registers them in another order or has several inputs or outputs.
        """
        return find_outer_layers(self.networks()[network])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: see `evaluation_step`."""
        self.evaluation_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: see `evaluation_step`."""
        self.evaluation_step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Lightning's hook: log the metrics of the whole set."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Lightning's hook: log the metrics of the whole set."""
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> None:
        measured = dict(self.evaluation_metrics(prefix))
        if self.own_metrics is not None:
            measured |= self.own_metrics.compute(prefix, measured)
        metrics = {f"{prefix}/{name}": value for name, value in measured.items()}
        # evaluation_metrics has reduced over ranks already: sync_dist would average the same numbers once more.
        # Lightning would pass the loggers a step one behind that of the training lines.
        self.log_dict(metrics, logger=False, sync_dist=False)
        self.evaluated = {name: float(value) for name, value in metrics.items()}
        if not self.trainer.sanity_checking:
            values = {**self.evaluated, "epoch": float(self.trainer.current_epoch)}
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.trainer.global_step)


class SupervisedModule(TrainingModule[ConfigT]):
    """A task with one network, and with a loss that is a sum over samples."""

    model: nn.Module

    def networks(self) -> Mapping[str, nn.Module]:
        """See TrainingModule; the network is called model."""
        return {"model": self.model}

    @abstractmethod
    def loss(self, network: nn.Module, micro: Any) -> tuple[Tensor, StepSums]:
        """Compute the loss of a micro-batch by calling `network`.

        Returns: (loss summed over the valid rows, other sums over the valid rows).
        """

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
