"""From a configuration to a trained model: read this first.

`fit` runs on every rank, whoever started it. The task brings data and networks; everything else is put together here.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger
from rich.console import Console

from trainer.checkpoint.callback import Checkpointing
from trainer.checkpoint.state import STATE_FILE, PlainCheckpointIO, RandomState
from trainer.checkpoint.store import CheckpointStore, read_manifest
from trainer.config import Config, WandbLogger
from trainer.convert import MODEL_FILE, read_state, write_weights
from trainer.data.module import DataModule
from trainer.errors import UserError
from trainer.faults.stop import StopOnSignal, StopRequested
from trainer.launch.world import World
from trainer.module import TrainingModule
from trainer.observe.jsonl import JsonlLogger, drop_lines_after
from trainer.observe.metrics import TrainingMetrics
from trainer.observe.progress import ProgressBar
from trainer.observe.summary import print_start, print_summary
from trainer.run import Record
from trainer.strategies.build import build_strategy
from trainer.task import TaskSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. status: finished or stopped. cause: a sentence for the record."""

    status: Literal["finished", "stopped"]
    cause: str


def fit(config: Config, mapping: dict[str, Any], task: TaskSpec, world: World, run_dir: Path) -> Outcome:
    """Train, or go on training, the run in `run_dir`.

    Args: mapping: the configuration as written to config.yaml.
    Raises: UserError: the data, the model or the device is not as configured.
    """
    console = Console()
    record = Record(run_dir)
    stop = StopOnSignal(config.trainer.log_every_n_steps)
    data, module = build(config, task, world)
    checkpoint = CheckpointStore(run_dir).newest_valid()
    if world.rank == 0:
        facts = {"data": dict(data.describe()), "model": _model_facts(module)}
        record.update(**facts)
        drop_lines_after(run_dir, read_manifest(checkpoint)["step"] if checkpoint else 0)
        print_start(console, run_dir, config, world, facts, checkpoint)
    metrics = TrainingMetrics(config.trainer.log_every_n_steps, config.trainer.precision)
    callbacks: list[Callback] = [RandomState(), metrics, stop]
    if config.trainer.enable_progress_bar:
        callbacks.append(ProgressBar(metrics, console))
    callbacks += _early_stopping(config)
    callbacks.append(Checkpointing(config, run_dir, stop))
    loggers = build_loggers(config, mapping, record) if world.rank == 0 else []
    trainer = build_trainer(config, world, run_dir, callbacks, loggers)
    start = time.perf_counter()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint / STATE_FILE) if checkpoint else None)
    except StopRequested:
        _finish_loggers(loggers, 1, None)
        raise
    training_s = time.perf_counter() - start
    model_file = finish(config, trainer, module, data, run_dir)
    places = _finish_loggers(loggers, 0, model_file)
    if trainer.is_global_zero:
        print_summary(console, run_dir, config, training_s, places)
    return Outcome("finished", f"all {trainer.global_step} steps done")


def build(config: Config, task: TaskSpec, world: World) -> tuple[DataModule, TrainingModule]:
    """Data and networks of a run on this rank: the same weights on all ranks, then each rank's own random stream."""
    device = rank_device(world)
    if config.trainer.precision.startswith("bf16") and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name(device)
        raise UserError(f"trainer.precision={config.trainer.precision}: {name} has no bfloat16; use 16-mixed")
    if device.type == "cuda":
        torch.set_float32_matmul_precision(config.performance.float32_matmul_precision)
    data = task.build_data(config)
    data.load(device)
    pl.seed_everything(config.seed, verbose=False)
    module = task.build_module(config, data)
    prepare_networks(config, module)
    pl.seed_everything(config.seed + world.rank, verbose=False)
    return data, module


def prepare_networks(config: Config, module: TrainingModule) -> None:
    """Memory order and compilation, in place: names of weights stay as they are."""
    for network in module.networks().values():
        if config.performance.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if config.performance.compile and type(network).forward.__module__.startswith("torch.nn."):
            # Module.compile() silently compiles nothing of torch's own containers: their files are among those skipped.
            network.forward = torch.compile(network.forward)
        elif config.performance.compile:
            network.compile()


def rank_device(world: World) -> torch.device:
    """The device of this rank; it becomes the current one."""
    if world.accelerator == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(world.gpu_index)
    return torch.device("cuda", world.gpu_index)


def build_trainer(
    config: Config, world: World, run_dir: Path, callbacks: list[Callback], loggers: list[Logger]
) -> pl.Trainer:
    """Lightning's Trainer on the ranks that exist already."""
    options = config.trainer
    trainer = pl.Trainer(
        accelerator=world.accelerator,
        devices=world.local_world_size,
        num_nodes=world.num_nodes,
        strategy=build_strategy(config, world, rank_device(world)),
        plugins=[PlainCheckpointIO(), JoinedEnvironment(world)],
        precision=options.precision,
        max_epochs=options.max_epochs if options.max_epochs is not None else -1,
        max_steps=options.max_steps,
        log_every_n_steps=options.log_every_n_steps,
        val_check_interval=options.val_check_interval,
        check_val_every_n_epoch=options.check_val_every_n_epoch,
        limit_train_batches=options.limit_train_batches,
        limit_val_batches=options.limit_val_batches,
        limit_test_batches=options.limit_test_batches,
        num_sanity_val_steps=options.num_sanity_val_steps,
        deterministic=options.deterministic,
        benchmark=options.benchmark,
        detect_anomaly=options.detect_anomaly,
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=run_dir,
        # Ours, for reasons each of them gives.
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    # Lightning 2.6 broadcasts a flag and reads it from the device before every step; `StopOnSignal` does its work.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


class JoinedEnvironment(ClusterEnvironment):
    """Tells Lightning about ranks that are running already; it must never start any."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        """Always."""
        return True

    @property
    def main_address(self) -> str:
        """Where rank 0 listens."""
        return self.world.master_addr

    @property
    def main_port(self) -> int:
        """Port of rank 0."""
        return self.world.master_port

    @staticmethod
    def detect() -> bool:
        """Never by itself."""
        return False

    def world_size(self) -> int:
        """All ranks."""
        return self.world.world_size

    def set_world_size(self, size: int) -> None:
        """The world is as it is."""

    def global_rank(self) -> int:
        """This process among all."""
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        """The world is as it is."""

    def local_rank(self) -> int:
        """This process on its node."""
        return self.world.local_rank

    def node_rank(self) -> int:
        """This node among all."""
        return self.world.rank // self.world.local_world_size


def build_loggers(config: Config, mapping: dict[str, Any], record: Record) -> list[Logger]:
    """metrics.jsonl always, and what the configuration adds. Rank 0 only."""
    loggers: list[Logger] = [JsonlLogger(record.directory)]
    if isinstance(config.logger, WandbLogger):
        from trainer.observe.wandb import build_wandb_logger

        loggers.append(build_wandb_logger(config.logger, mapping, record.directory, record.read()["wandb_id"]))
    return loggers


def finish(config: Config, trainer: pl.Trainer, module: TrainingModule, data: DataModule, run_dir: Path) -> Path:
    """Go back to the best weights, test them where there is a test set, and write them as safetensors.

    They come from the checkpoint, which holds them whole whatever the strategy.
    """
    store = CheckpointStore(run_dir)
    state = read_state((store.best() or store.steps()[-1]) / STATE_FILE)
    if "test" in data.sets and config.trainer.limit_test_batches:
        trainer.strategy.load_model_state_dict(state)
        trainer.test(module, datamodule=data, verbose=False)
    path = run_dir / MODEL_FILE
    if trainer.is_global_zero:
        write_weights(state["state_dict"], path)
    return path


def _early_stopping(config: Config) -> list[Callback]:
    monitor = config.monitor
    if monitor.patience is None:
        return []
    return [EarlyStopping(monitor.metric, monitor.min_delta, monitor.patience, mode=monitor.mode)]


def _finish_loggers(loggers: list[Logger], exit_code: int, model_file: Path | None) -> dict[str, str]:
    """Returns: where each service shows the run, by its name."""
    places = {}
    for logger in loggers:
        if not isinstance(logger, JsonlLogger):
            from trainer.observe.wandb import finish_wandb

            places["W&B"] = finish_wandb(logger, exit_code, model_file)  # pyright: ignore[reportArgumentType]
    return places


def _model_facts(module: TrainingModule) -> dict[str, Any]:
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in module.networks().items()}
    describe = getattr(module, "describe", dict)
    return {"num_parameters": counts, **describe()}
