"""The sides of `bench overhead`: one training run by three loops, each in a process of its own.

All of them train the task's network on the same batches with its own loss, optimizer and schedule.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from torch import Tensor, nn

from trainer.bench.turns import Turns
from trainer.checkpoint.callback import Checkpointing
from trainer.checkpoint.random_state import RandomState
from trainer.config.schema import Config
from trainer.data.module import DataModule
from trainer.data.samplers import Share, split_step
from trainer.engine.build import build_clock, build_data_and_module, build_trainer
from trainer.errors import UserError
from trainer.faults.stop import StopOnSignal
from trainer.module import SupervisedModule
from trainer.observe.jsonl import JsonlLogger
from trainer.observe.metrics import TrainingMetrics
from trainer.observe.progress import ProgressBar
from trainer.optim.hidden import hidden_weights
from trainer.optim.optimizers import build_optimizer, build_scheduler
from trainer.verbs.prepare import PreparedRun, prepare, take_options


def built(words: Sequence[str]) -> tuple[PreparedRun, DataModule, SupervisedModule[Any]]:
    """The configuration, its data, and its networks with their first weights.

    Raises: UserError: also where the task's step is not that of one network with one loss.
    """
    torch.set_num_threads(1)
    options, overrides = take_options(words)
    prepared = prepare(overrides, options)
    data, module = build_data_and_module(prepared.config, prepared.task, prepared.world)
    if not isinstance(module, SupervisedModule):
        name = prepared.config.task.name
        raise UserError(f"task={name}: has more than one network or loss, and the loop by hand knows only one of each")
    return prepared, data, module


def optimizer_and_schedule(config: Config, module: SupervisedModule[Any]) -> tuple[Any, Any]:
    """Those that the trainer would build."""
    hidden = hidden_weights(module.model, module.outer_layers("model"))
    optimizer = build_optimizer(module.parameter_groups("model"), config, hidden)
    return optimizer, build_scheduler(optimizer, config.scheduler, config.trainer.max_steps)


class Steps:
    """The micro-batches of each step, and the samples of the step; gathered when asked for."""

    def __init__(self, config: Config, data: DataModule) -> None:
        self.config, self.data = config, data

    def __iter__(self) -> Iterator[tuple[list[Any], int]]:
        sampler, train = self.data.train_sampler(), self.data.sets["train"]
        micro_size, epoch = self.config.batch.fixed_micro_size or self.config.batch.global_size, 0
        while True:
            for indices in sampler.epoch_batches(epoch):
                micros = split_step(indices, Share(0, 1), micro_size)
                yield [train.gather(micro.indices, micro.num_valid, epoch) for micro in micros], len(indices)
            epoch += 1


def by_hand(turns: Turns, words: Sequence[str]) -> None:
    """Loss, gradients and update, and nothing else."""
    prepared, data, module = built(words)
    config, network = prepared.config, module.model.train()
    optimizer, schedule = optimizer_and_schedule(config, module)
    limit = config.trainer.gradient_clip_val
    for micros, num_samples in Steps(config, data):
        turns.begin_step()
        losses = []
        for micro in micros:
            loss = module.loss(network, micro)[0] / num_samples
            loss.backward()
            losses.append(loss.detach())
        if limit is not None:
            nn.utils.clip_grad_norm_(network.parameters(), limit)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        turns.end_step(sum(losses))


class TurnsCallback(pl.Callback):
    """Takes turns around the steps of a Lightning loop. summed: the loop gives the loss summed over samples."""

    def __init__(self, turns: Turns, summed: bool) -> None:
        self.turns, self.summed = turns, summed

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Wait for a turn."""
        self.turns.begin_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a step."""
        self.turns.end_step(outputs["loss"] / batch.num_samples if self.summed else outputs["loss"])


def ours(turns: Turns, words: Sequence[str]) -> None:
    """The trainer, with metrics, accounting, a progress bar and metrics.jsonl."""
    prepared, data, module = built(words)
    config = prepared.config
    module.clock = data.clock = build_clock(prepared.world)
    with tempfile.TemporaryDirectory() as folder, Path(folder, "bar").open("w") as bar:
        metrics = TrainingMetrics(config.trainer.log_every_n_steps, config.trainer.precision, module.clock)
        stop = StopOnSignal()
        progress = ProgressBar(metrics, Console(file=bar, force_terminal=True))
        saving = Checkpointing(config, Path(folder), stop, module.clock)
        callbacks = [RandomState(), metrics, stop, progress, saving, TurnsCallback(turns, summed=True)]
        trainer = build_trainer(config, prepared.world, Path(folder), callbacks, [JsonlLogger(Path(folder))])
        trainer.fit(module, datamodule=data)


class Automatic(pl.LightningModule):
    """The same step as Lightning's documentation writes one: automatic optimization, `self.log` in each step."""

    def __init__(self, config: Config, module: SupervisedModule[Any]) -> None:
        super().__init__()
        self.config, self.network = config, module.model
        # Not a submodule: its hooks are those of manual optimization.
        self.__dict__["task"] = module

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean loss of a batch, logged."""
        loss = self.__dict__["task"].loss(self.network, batch)[0] / batch.num_valid
        self.log("train/loss", loss, prog_bar=True, batch_size=batch.num_valid)
        return loss

    def configure_optimizers(self) -> Any:
        """The task's optimizer and schedule."""
        optimizer, schedule = optimizer_and_schedule(self.config, self.__dict__["task"])
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Batches:
    """Whole batches, as Lightning's automatic optimization takes them."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[Any]:
        return (micros[0] for micros, _ in self.steps)


def lightning(turns: Turns, words: Sequence[str]) -> None:
    """Lightning's Trainer with its own progress bar and CSV logger."""
    prepared, data, module = built(words)
    options = prepared.config.trainer
    with tempfile.TemporaryDirectory() as folder, Path(folder, "bar").open("w") as bar:
        sys.stdout = sys.stderr = bar
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=options.max_steps,
            max_epochs=-1,
            log_every_n_steps=options.log_every_n_steps,
            gradient_clip_val=options.gradient_clip_val,
            logger=CSVLogger(folder),
            callbacks=[TurnsCallback(turns, summed=False)],
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(Automatic(prepared.config, module), train_dataloaders=Batches(Steps(prepared.config, data)))
