"""Training metrics: sums are kept on the device, and every so many steps all ranks add them up once.

`self.log` in every step costs a millisecond on a small model; here a step adds one vector to another.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from trainer.clock import StepClock, Times
from trainer.collectives import all_gather_json, all_reduce_sum
from trainer.data.batch import StepBatch
from trainer.module import StepSums, TrainingModule
from trainer.observe.device_state import device_state
from trainer.observe.flops import Peaks, find_peaks
from trainer.observe.step_time import RankTimes, state_of, step_metrics

RATE_PREFIX = "num_"
STATE_KEY = "training_metrics"


class TrainingMetrics(pl.Callback):
    """Logs train/*, optim/* and perf/* as means over the window of steps since the last line.

    A checkpoint holds the window that it was saved in, so that a resumed run logs the lines of an uninterrupted one.

    latest: the values last logged, for the progress bar. clock: of the run.
    """

    def __init__(self, log_every_n_steps: int, precision: str, clock: StepClock) -> None:
        self.world_size = 1
        self.log_every_n_steps, self.precision = log_every_n_steps, precision
        self.latest: dict[str, float] = {}
        self.clock = clock
        self.names: list[str] = []
        self.sums: Tensor | None = None
        # Sums of the last step by name, which other callbacks may read and not change.
        self.of_step = torch.zeros(0)
        self.num_samples = self.num_steps = 0
        self.peaks: Peaks | None = None
        # Of all ranks in this attempt.
        self.num_flops = 0.0
        # Of the last step.
        self.epoch = 0
        self.optim: dict[str, float | Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what the device could do."""
        self.world_size = trainer.world_size
        self.peaks = find_peaks(trainer.strategy.root_device, self.precision)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here."""
        self.clock.start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Forget the last step's norms: a step may compute none, and its line must not show an older one."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.grad_norms.clear()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch[Any], batch_idx: int
    ) -> None:
        """Add this step's sums; at the cadence, reduce and log."""
        assert isinstance(pl_module, TrainingModule)
        self.clock.end_step()
        with self.clock.within("logging"):
            self._add(trainer, pl_module, outputs, batch)

    def _add(self, trainer: pl.Trainer, module: TrainingModule, sums: StepSums, batch: StepBatch[Any]) -> None:
        if not module.step_is_skipped:
            self._add_sums(trainer, module, sums, batch)
        if trainer.global_step % self.log_every_n_steps == 0:
            self.log_window(trainer)

    def _add_sums(self, trainer: pl.Trainer, module: TrainingModule, sums: StepSums, batch: StepBatch[Any]) -> None:
        self.names = list(sums)
        self.of_step = torch.stack([value.detach().to(torch.float64) for value in sums.values()])
        if self.sums is None:
            self.sums = self.of_step.clone()
        else:
            self.sums = self.sums.to(self.of_step.device).add_(self.of_step)
        self.num_samples += batch.num_samples
        self.num_steps += 1
        self.epoch = trainer.current_epoch
        self.optim = _optimizer_metrics(module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what is left, also where a run resumes after its last step.

        The last checkpoint has been saved: it holds this window, which a longer run continues.
        """
        self.log_window(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the window's sums of all ranks; called on all of them.

        Each rank's are kept: adding them up here would round differently than adding them up at the window's end.
        """
        checkpoint[STATE_KEY] = {
            "names": self.names,
            "sums": all_gather_json(None if self.sums is None else self.sums.tolist()),
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "times": state_of(self.clock.peek()),
            "epoch": self.epoch,
            "optim": {name: float(value) for name, value in self.optim.items()},
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue the window. On another number of ranks than saved, rank 0 takes all of the sums."""
        state = checkpoint[STATE_KEY]
        self.names, self.num_samples, self.num_steps = state["names"], state["num_samples"], state["num_steps"]
        self.epoch, self.optim = state["epoch"], state["optim"]
        if "times" not in state:
            # An older checkpoint, whose window cannot be continued.
            self.num_samples = self.num_steps = 0
        if self.num_steps:
            self.clock.restore(Times(**state["times"]))
            sums = torch.tensor(state["sums"], dtype=torch.float64, device=trainer.strategy.root_device)
            if len(sums) == trainer.world_size:
                self.sums = sums[trainer.global_rank]
            else:
                self.sums = sums.sum(0) * (trainer.global_rank == 0)

    def log_window(self, trainer: pl.Trainer) -> None:
        """Log the window, if it has any step, and begin another. Called on all ranks."""
        if self.sums is None:
            return
        device = trainer.strategy.root_device
        # tolist() waits for the device, and so for the steps' computation, which the times then cover.
        with self.clock.within("communication"):
            totals = dict(zip(self.names, all_reduce_sum(self.sums).tolist(), strict=True))
        times = self.clock.take()
        ranks = RankTimes.gathered(times.states)
        metrics = {f"train/{n}": v / self.num_samples for n, v in totals.items() if not n.startswith(RATE_PREFIX)}
        metrics["epoch"] = float(self.epoch)
        metrics |= {name: float(value) for name, value in self.optim.items()}
        rates = {n.removeprefix(RATE_PREFIX): v for n, v in totals.items() if n.startswith(RATE_PREFIX)}
        metrics |= step_metrics(times, ranks) | self._throughput(trainer, device, rates, times.steps_s)
        self.latest = metrics
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
            logger.save()
        self.sums, self.num_samples, self.num_steps = None, 0, 0

    def efficiency(self) -> float | None:
        """FLOP/s in the passes of this attempt, as a share of those of a matrix product; None where none is counted."""
        compute_s = (self.clock.run["forward"] + self.clock.run["backward"]) / 1e9
        if self.peaks is None or not self.num_flops or not compute_s:
            return None
        return self.num_flops / self.world_size / compute_s / self.peaks.measured

    def _throughput(
        self, trainer: pl.Trainer, device: torch.device, rates: dict[str, float], elapsed_s: float
    ) -> dict[str, float]:
        totals = {"samples": self.num_samples, **rates}
        metrics = {f"perf/{name}_per_s": total / elapsed_s for name, total in totals.items()}
        if trainer.world_size > 1:
            per_device = {f"{name}_per_device": rate / trainer.world_size for name, rate in metrics.items()}
            metrics |= {name: rate for name, rate in per_device.items() if "/samples_" in name or "/tokens_" in name}
        if device.type == "cuda":
            metrics |= _memory(device) | device_state(device)
        if self.peaks is not None and "flops" in rates:
            self.num_flops += rates["flops"]
            achieved = rates["flops"] / elapsed_s / trainer.world_size
            metrics["perf/mfu_measured"] = achieved / self.peaks.measured
            if self.peaks.datasheet is not None:
                metrics["perf/mfu"] = achieved / self.peaks.datasheet
        return metrics


def _optimizer_metrics(module: TrainingModule) -> dict[str, float | Tensor]:
    """Learning rate and, where the step has computed it, gradient norm of each network."""
    names = list(module.networks())
    metrics: dict[str, float | Tensor] = {}
    for name in names:
        suffix = "" if len(names) == 1 else f"_{name}"
        metrics[f"optim/lr{suffix}"] = module.last_lrs[name]
        if name in module.grad_norms:
            metrics[f"optim/grad_norm{suffix}"] = module.grad_norms[name]
    return metrics


def _memory(device: torch.device) -> dict[str, float]:
    """GiB of a GPU that tensors hold now and held at most, and that the process keeps for them."""
    sizes = {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
    }
    return {f"perf/{name}_memory_gib": size / 2**30 for name, size in sizes.items()}
