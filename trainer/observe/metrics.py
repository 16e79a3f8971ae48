"""Training metrics: sums are kept on the device, and every so many steps all ranks add them up once.

`self.log` in every step costs a millisecond on a small model; here a step adds one vector to another.
"""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from trainer.collectives import all_reduce_sum
from trainer.data.batch import StepBatch
from trainer.data.module import DataModule
from trainer.module import StepSums, TrainingModule
from trainer.observe.flops import peak_flops_per_s

RATE_PREFIX = "num_"


class TrainingMetrics(pl.Callback):
    """Logs train/*, optim/* and perf/* as means over the steps since the last line.

    latest: the values last logged, for the progress bar.
    """

    def __init__(self, log_every_n_steps: int, precision: str) -> None:
        self.log_every_n_steps, self.precision = log_every_n_steps, precision
        self.latest: dict[str, float] = {}
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.num_samples = self.num_steps = 0
        self.paused_s = 0.0
        self.paused_at: float | None = None
        self._restart_clock(0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts when training does."""
        self._restart_clock(self._data_wait_s(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluation and the checkpoint after it are no training time."""
        self.paused_at = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Training goes on."""
        if self.paused_at is not None:
            self.paused_s += time.perf_counter() - self.paused_at
            self.paused_at = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch[Any], batch_idx: int
    ) -> None:
        """Add this step's sums; at the cadence, reduce and log."""
        sums: StepSums = outputs
        self.names = list(sums)
        values = torch.stack([value.detach().to(torch.float64) for value in sums.values()])
        self.sums = values if self.sums is None else self.sums.add_(values)
        self.num_samples += batch.num_samples
        self.num_steps += 1
        if trainer.global_step % self.log_every_n_steps == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The steps since the last line."""
        if self.num_steps:
            self._log(trainer, pl_module)

    def _log(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self.sums is not None and isinstance(module, TrainingModule)
        totals = dict(zip(self.names, all_reduce_sum(self.sums).tolist(), strict=True))
        # tolist() has waited for the device, so the time below covers the steps' computation.
        elapsed_s = time.perf_counter() - self.started - self.paused_s
        metrics = {f"train/{n}": v / self.num_samples for n, v in totals.items() if not n.startswith(RATE_PREFIX)}
        metrics |= self._optimizer_metrics(trainer, module)
        rates = {n.removeprefix(RATE_PREFIX): v for n, v in totals.items() if n.startswith(RATE_PREFIX)}
        metrics |= self._performance(trainer, module.device, rates, elapsed_s)
        self.latest = metrics
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self.sums, self.num_samples, self.num_steps = None, 0, 0
        self._restart_clock(self._data_wait_s(trainer))

    def _optimizer_metrics(self, trainer: pl.Trainer, module: TrainingModule) -> dict[str, float]:
        names = list(module.networks())
        metrics = {"epoch": float(trainer.current_epoch)}
        for name in names:
            suffix = "" if len(names) == 1 else f"_{name}"
            metrics[f"optim/lr{suffix}"] = module.last_lrs[name]
            if name in module.grad_norms:
                metrics[f"optim/grad_norm{suffix}"] = float(module.grad_norms[name])
        return metrics

    def _performance(
        self, trainer: pl.Trainer, device: torch.device, rates: dict[str, float], elapsed_s: float
    ) -> dict[str, float]:
        waited_s = self._data_wait_s(trainer) - self.waited_before_s
        metrics = {
            "perf/samples_per_s": self.num_samples / elapsed_s,
            "perf/step_time_s": elapsed_s / self.num_steps,
            "perf/data_wait_fraction": min(1.0, waited_s / elapsed_s),
        }
        metrics |= {f"perf/{name}_per_s": total / elapsed_s for name, total in rates.items()}
        if device.type == "cuda":
            metrics["perf/peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            peak = peak_flops_per_s(torch.cuda.get_device_name(device), self.precision)
            # Nothing is guessed: a GPU that is not in the table has no MFU.
            if peak is not None and "flops" in rates:
                metrics["perf/mfu"] = rates["flops"] / elapsed_s / (peak * trainer.world_size)
        return metrics

    def _restart_clock(self, waited_s: float) -> None:
        self.paused_at = None
        self.started, self.paused_s, self.waited_before_s = time.perf_counter(), 0.0, waited_s

    @staticmethod
    def _data_wait_s(trainer: pl.Trainer) -> float:
        data = getattr(trainer, "datamodule", None)
        return data.train_loader.wait_s if isinstance(data, DataModule) and data.train_loader is not None else 0.0
