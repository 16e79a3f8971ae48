"""Data, networks, Trainer and loggers of a run, from the configuration."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import Profiler
from safetensors import SafetensorError
from safetensors.torch import load_model

from trainer.checkpoint.weights import WEIGHTS, PlainCheckpointIO, first_mismatch, read_state
from trainer.clock import DeviceClock, StepClock
from trainer.config.schema import Config
from trainer.data.cache import use_private_compiler_cache
from trainer.data.module import DataModule
from trainer.engine.epoch_loop import EpochLoop
from trainer.engine.host_memory import keep_freed_memory
from trainer.engine.lightning_environment import JoinedEnvironment
from trainer.engine.step_loop import StepLoop
from trainer.errors import UserError
from trainer.module import TrainingModule
from trainer.run.files import MODEL_FILE
from trainer.strategies.batchnorm import synchronise_batchnorm
from trainer.strategies.build import build_strategy
from trainer.task import TaskSpec
from trainer.world import World


def build_data_and_module(
    config: Config, task: TaskSpec, world: World, run_dir: Path | None = None
) -> tuple[DataModule, TrainingModule]:
    """Build data and networks on this rank: the same weights on all ranks, then a random stream of its own.

    Args: run_dir: of a run that has begun, whose input spec is used.
    Raises: UserError: the data cannot be read, or the device does not support the precision.
    """
    device = rank_device(world)
    if config.trainer.precision.startswith("bf16") and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name(device)
        raise UserError(f"trainer.precision={config.trainer.precision}: {name} has no bfloat16; use 16-mixed")
    if device.type == "cuda":
        torch.set_float32_matmul_precision(config.performance.float32_matmul_precision)
    else:
        keep_freed_memory()
    data = task.build_data(config)
    if run_dir is not None:
        data.read_input_spec(run_dir)
    data.load(device)
    pl.seed_everything(config.seed, verbose=False)
    module = task.build_module(config, data)
    prepare_networks(config, module, world)
    pl.seed_everything(config.seed + world.rank, verbose=False)
    return data, module


def build_trained(
    config: Config, task: TaskSpec, world: World, run_dir: Path, weights: Path | None = None
) -> tuple[DataModule, TrainingModule, pl.Trainer]:
    """Build data, networks with trained weights, and a Trainer without callbacks or loggers.

    Args: weights: a safetensors file or a checkpoint's state; None takes the run's final weights.
    Raises: UserError: the run has no weights yet, or they belong to another model.
    """
    weights = weights or run_dir / MODEL_FILE
    if not weights.exists():
        raise UserError(
            f"run={run_dir}: no {MODEL_FILE} yet", "the run is not finished; the command that started it resumes it"
        )
    data, module = build_data_and_module(config, task, world, run_dir)
    _load_weights(module, weights)
    return data, module, build_trainer(config, world, run_dir, [], [])


def _load_weights(module: TrainingModule, file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            load_model(module, str(file))
        else:
            module.load_state_dict(read_state(file, WEIGHTS)["state_dict"])
    except SafetensorError as error:
        raise UserError(f"checkpoint={file}: damaged ({error})") from error
    except RuntimeError as error:
        raise UserError(f"checkpoint={file}: weights of another model ({first_mismatch(error)})") from error


def prepare_networks(config: Config, module: TrainingModule, world: World) -> None:
    """Set batch statistics, memory format and compilation of all networks, in place; names of weights do not change."""
    if config.performance.compile:
        use_private_compiler_cache()
    for network in module.networks().values():
        if config.trainer.sync_batchnorm and world.world_size > 1:
            synchronise_batchnorm(network, world.accelerator)
        if config.performance.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if config.performance.compile and type(network).forward.__module__.startswith("torch.nn."):
            # Module.compile() silently skips torch's own containers.
            network.forward = torch.compile(network.forward)
        elif config.performance.compile:
            network.compile()


def build_clock(world: World) -> StepClock:
    """The clock of a run on this rank: it counts on the device where work on it is asynchronous."""
    if world.accelerator == "cpu":
        return StepClock()
    rank_device(world)
    return DeviceClock(lambda: torch.cuda.Event(enable_timing=True))


def rank_device(world: World) -> torch.device:
    """The device of this rank, made the current one."""
    if world.accelerator == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(world.gpu_index)
    return torch.device("cuda", world.gpu_index)


def build_trainer(
    config: Config,
    world: World,
    run_dir: Path,
    callbacks: list[Callback],
    loggers: list[Logger],
    profiler: Profiler | None = None,
) -> pl.Trainer:
    """Build Lightning's Trainer for ranks that are already running."""
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
        # The loaders apply the limits over all ranks; Lightning, which counts per rank, only hears of none at all.
        limit_val_batches=1.0 if options.limit_val_batches else 0,
        limit_test_batches=1.0 if options.limit_test_batches else 0,
        num_sanity_val_steps=options.num_sanity_val_steps,
        deterministic=options.deterministic,
        benchmark=options.benchmark,
        detect_anomaly=options.detect_anomaly,
        logger=loggers,
        callbacks=callbacks,
        profiler=profiler,
        default_root_dir=run_dir,
        # The project has its own; the docstring of each says why.
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit_loop = EpochLoop(trainer, max_epochs=trainer.fit_loop.max_epochs)
    trainer.fit_loop.epoch_loop = StepLoop(trainer, max_steps=options.max_steps)
    # Lightning 2.6 broadcasts a SIGTERM flag and waits for the device before every step; `StopOnSignal` replaces it.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def build_early_stopping(config: Config) -> list[Callback]:
    """Early stopping, where monitor.patience asks for it."""
    monitor = config.monitor
    if monitor.patience is None:
        return []
    stopping = ResumableEarlyStopping(
        monitor.metric,
        monitor.min_delta,
        monitor.patience,
        mode=monitor.mode,
        # `Checkpointing` refuses an unknown metric, as an error of the user.
        strict=False,
        # Before the checkpoint that follows an evaluation, which then holds the decision.
        check_on_train_epoch_end=False,
    )
    return [stopping]


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's, which restores its counts but not that it has decided to stop."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop again where the checkpoint was saved after the decision."""
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True
