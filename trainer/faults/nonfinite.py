"""What happens at a loss or gradient that is not finite, decided before an update is applied.

The gradient of a step is a sum over ranks, and a value that is not finite stays so in a sum. So the norm of the reduced
gradient answers for all ranks, and nothing more is exchanged: with gradient clipping the norm is there already. A loss
that is not finite is multiplied into its own gradient, which makes that not finite too. ZeRO looks at its norm itself.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.collectives import all_gather_json, decide_on_rank_0
from trainer.config.schema import Config
from trainer.data.batch import StepBatch
from trainer.data.module import DataModule
from trainer.errors import RankFailure
from trainer.faults.nonfinite_page import NonFiniteStep, write_page
from trainer.faults.replay import first_bad_weight, replay
from trainer.faults.spikes import LossSpikes
from trainer.module import TrainingModule
from trainer.network_strategy import UpdateGuard
from trainer.run.record import Record

RECORD_KEY = "skipped_steps"
# By step, the updates that had been applied before the first that was skipped, where there were any: of a GAN.
APPLIED_KEY = "updates_before_skip"


class NonFinite(RankFailure):
    """A loss or gradient is not finite, and the run stops. The message says where, in three lines."""


class RolledBack(Exception):
    """The run returns to its newest checkpoint. The message is for the terminal."""


class NonFiniteGuard(pl.Callback, UpdateGuard):
    """Stops, skips or rolls back as faults.on_nonfinite says; all ranks take the same decision at the same update.

    On the CPU the norm is read where it is computed. On a GPU that would wait for the device in each step, so where the
    run is to stop and the optimizer is fused, the device itself skips the update, and the norm is read a step later:
    no update is applied after it. float16 gradients overflow in ordinary steps: Lightning's scaler skips these.

    spikes: of faults.loss_spike, which are handled likewise.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self.options, self.run_dir = config.faults, run_dir
        self.checks = config.trainer.precision != "16-mixed"
        limit = config.faults.loss_spike
        self.spikes = None if limit is None else LossSpikes(limit)
        # Steps that are skipped, with the updates before the first that is.
        self.listed: dict[int, int] = dict(decide_on_rank_0(lambda: _listed(Record(run_dir))))
        self.trainer: pl.Trainer | None = None
        self.step: NonFiniteStep | None = None
        self.buffers: list[Tensor] = []
        self.pending: _DeviceAnswer | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lightning's hook: guard the strategy's updates."""
        self.trainer = trainer
        trainer.strategy.guard = self  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch[Any], batch_idx: int
    ) -> None:
        """Lightning's hook: keep what a step that is skipped would leave in buffers, such as BatchNorm's."""
        module = _checked(pl_module)
        module.step_is_skipped, module.num_updates = False, 0
        if self.spikes is not None:
            self.spikes.clear()
        self.step = NonFiniteStep(trainer.global_step + 1, batch, batch_idx)
        if self.options.on_nonfinite == "skip" or self.step.number in self.listed:
            module.restore_own_buffers()
            self.buffers = [buffer.clone() for network in module.networks().values() for buffer in network.buffers()]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook: restore the buffers after a step that was skipped."""
        # The memory of the batch is free for the next ones.
        self.step = None
        module = _checked(pl_module)
        if module.step_is_skipped:
            now = [buffer for network in module.networks().values() for buffer in network.buffers()]
            for buffer, before in zip(now, self.buffers, strict=True):
                buffer.copy_(before)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook: the last step counts too."""
        self.settle()

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook: a run that is resumed finds the same spikes."""
        return {} if self.spikes is None else self.spikes.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook."""
        if self.spikes is not None:
            self.spikes.load_state_dict(state_dict)

    def marked(self, loss: Tensor) -> Tensor:
        """See UpdateGuard: its gradient is exactly as before where the loss is finite, and else NaN."""
        assert self.step is not None
        if not self.checks:
            return loss
        if self.spikes is not None:
            self.spikes.add(self._module.clock.network, loss)
        return loss * math.nan if self._is_skipped(self.step) else loss * (loss.detach() * 0 + 1)

    def _is_skipped(self, step: NonFiniteStep) -> bool:
        """Whether the update in progress is skipped whatever its gradient is."""
        module = self._module
        return module.step_is_skipped or module.num_updates >= self.listed.get(step.number, sys.maxsize)

    def allows(self, optimizer: Optimizer) -> bool:
        """See UpdateGuard."""
        if not self.checks:
            return True
        self.settle()
        network = self._module.network_of(optimizer)
        norm = self._module.grad_norms[network]
        waits = self.spikes is not None or self.options.on_nonfinite != "stop"
        if norm.is_cuda and not waits and getattr(optimizer, "_step_supports_amp_scaling", 0):
            bad = ~norm.isfinite()
            optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
            assert self.step is not None
            self.pending = _DeviceAnswer(bad, self.step, optimizer)
            return True
        if not bool(norm.isfinite()):
            self.found(optimizer)
            return False
        # On all ranks or on none: the norm is the same on all.
        spike = None if self.spikes is None else self.spikes.found(network)
        if spike is not None:
            self._found(network, f"the loss of {network} {spike}")
        return spike is None

    def settle(self) -> None:
        """See UpdateGuard."""
        pending, self.pending = self.pending, None
        if pending is not None and pending.read():
            self.step = pending.step
            self.found(pending.optimizer)

    def found(self, optimizer: Optimizer) -> None:
        """See UpdateGuard. Raises: NonFinite: the run stops. RolledBack: it returns to a checkpoint."""
        network = self._module.network_of(optimizer)
        self._found(network, f"the gradient of {network} is not finite")

    def _found(self, network: str, what: str) -> None:
        """Act on what is wrong with the update of a network."""
        step = self.step
        assert step is not None
        if self._is_skipped(step):
            self._module.step_is_skipped = True
            return
        lines = self._explain(step, what)
        policy, limit = self.options.on_nonfinite, self.options.max_skipped_steps
        if policy == "stop":
            raise NonFinite("\n".join([*lines, "faults.on_nonfinite=skip or rollback skips such a step"]))
        if len(self.listed) >= limit:
            raise NonFinite("\n".join([*lines, f"faults.max_skipped_steps={limit}: so many have been skipped already"]))
        # A step that comes again is skipped as a whole after a rollback, and as it was here after a resume.
        self.listed[step.number] = 0 if policy == "rollback" else self._module.num_updates
        decide_on_rank_0(lambda: _record(Record(self.run_dir), self.listed))
        if policy == "rollback":
            raise RolledBack("\n".join([*lines, "returning to the newest checkpoint; then the step is skipped"]))
        self._module.step_is_skipped = True
        if self._trainer.is_global_zero:
            print("\n".join([*lines, f"skipped ({len(self.listed)} of {limit})"]), file=sys.stderr, flush=True)

    def _explain(self, step: NonFiniteStep, what: str) -> list[str]:
        """Find the cause on all ranks and write the page. Returns: its first two lines."""
        module, data = self._module, self._trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, DataModule)
        weight = first_bad_weight(module.networks())
        findings = replay(module, step.batch, step.batch_idx, module._strategy.whole_networks)
        found = {"weight": weight, "micro_batches": [finding.as_record() for finding in findings]}
        ranks = all_gather_json(found)
        return decide_on_rank_0(lambda: write_page(self.run_dir, step.number, what, ranks, data))

    @property
    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None
        return self.trainer

    @property
    def _module(self) -> TrainingModule:
        return _checked(self._trainer.lightning_module)


def _listed(record: Record) -> list[tuple[int, int]]:
    stored = record.read()
    applied = stored.get(APPLIED_KEY, {})
    return [(step, applied.get(str(step), 0)) for step in stored.get(RECORD_KEY, [])]


def _record(record: Record, listed: dict[int, int]) -> None:
    applied = {str(step): number for step, number in sorted(listed.items()) if number}
    record.update(**{RECORD_KEY: sorted(listed), **({APPLIED_KEY: applied} if applied else {})})


class _DeviceAnswer:
    """A flag on its way from the device."""

    def __init__(self, flag: Tensor, step: NonFiniteStep, optimizer: Optimizer) -> None:
        self.step, self.optimizer = step, optimizer
        self.host = torch.empty((), dtype=torch.bool, pin_memory=True)
        self.host.copy_(flag, non_blocking=True)
        self.copied = torch.cuda.Event()
        self.copied.record()

    def read(self) -> bool:
        """The flag. The device has passed it by the time of the next update: there is a whole step in between."""
        self.copied.synchronize()
        return bool(self.host)


def _checked(module: pl.LightningModule) -> TrainingModule:
    if not isinstance(module, TrainingModule):
        raise TypeError(f"{type(module).__name__} is no TrainingModule")
    return module
