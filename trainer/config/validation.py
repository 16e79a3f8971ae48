"""Checks beyond types: values that contradict each other, the machine or the launcher."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.config.callbacks import callback_problems
from trainer.config.deepspeed import file_problems, shards_parameters
from trainer.config.groups import AdamConfig, SGDConfig
from trainer.config.loggers import logger_problems
from trainer.config.nodes import node_problems
from trainer.config.profilers import profiler_problems
from trainer.config.schema import Config
from trainer.config.strategies import DDPConfig, DeepSpeedFileConfig, shards_state
from trainer.errors import ConfigError, Problem
from trainer.task import TaskSpec
from trainer.world import World


def validate(config: Config, task: TaskSpec, world: World, trains: bool = True) -> None:
    """Check a typed configuration against itself, the task and the planned world.

    Args: trains: False where a trained model is applied, which takes no steps and so no global batch.
    Raises: ConfigError: with every problem found.
    """
    training_checks = (_length, _batch, _optimizer, _monitor, _init)
    checks = (*(training_checks if trains else ()), _precision, _run)
    problems = [problem for check in checks for problem in check(config, world)]
    problems += _strategy(config, world, task)
    if trains:
        problems += [*callback_problems(config), *logger_problems(config), *profiler_problems(config, world)]
    if config.metrics and not task.takes_metrics:
        problems.append(Problem("metrics", ",".join(config.metrics), f"task={task.name} takes no metrics of your own"))
    problems += node_problems(config, world.local_world_size)
    # A stored configuration has passed the task's checks already, and files that they look for may be gone since.
    problems += task.validate(config) if trains else []
    if problems:
        raise ConfigError(problems)


def _length(config: Config, world: World) -> Iterator[Problem]:
    trainer = config.trainer
    if trainer.max_epochs is None and trainer.max_steps == -1:
        yield Problem("trainer.max_epochs", None, "training would never end; set it or trainer.max_steps")
    if trainer.check_val_every_n_epoch is None and isinstance(trainer.val_check_interval, float):
        advice = "must be a number of steps when trainer.check_val_every_n_epoch=null"
        yield Problem("trainer.val_check_interval", trainer.val_check_interval, advice)
    if config.scheduler.name == "one_cycle" and not 0 < config.scheduler.warmup_fraction < 1:
        advice = "one_cycle needs a rise and a fall; must be greater than 0 and less than 1"
        yield Problem("scheduler.warmup_fraction", config.scheduler.warmup_fraction, advice)


def _batch(config: Config, world: World) -> Iterator[Problem]:
    size, ranks, micro = config.batch.global_size, world.world_size, config.batch.fixed_micro_size
    if world.resized:
        return
    if size % ranks:
        lower, upper = size - size % ranks, size + ranks - size % ranks
        possible = f"{lower} or {upper}" if lower else str(upper)
        yield Problem("batch.global_size", size, f"not divisible by {ranks} ranks; nearest: {possible}")
    elif micro is not None and (size // ranks) % micro:
        divisors = [d for d in range(1, size // ranks + 1) if (size // ranks) % d == 0]
        best = min(divisors, key=lambda divisor: abs(divisor - micro))
        yield Problem("batch.micro_size", micro, f"does not divide a rank's share of {size // ranks}; nearest: {best}")


def _precision(config: Config, world: World) -> Iterator[Problem]:
    if config.trainer.precision == "16-mixed" and world.accelerator == "cpu":
        yield Problem("trainer.precision", "16-mixed", "the CPU has no float16 scaler; possible: 32-true, bf16-mixed")
    fused = isinstance(config.optimizer, (SGDConfig, AdamConfig)) and config.optimizer.fused
    if config.trainer.precision == "16-mixed" and fused and config.trainer.gradient_clip_val is not None:
        advice = "a fused optimizer unscales float16 gradients after they are clipped; use bf16-mixed or fused=false"
        yield Problem("optimizer.fused", True, advice)
    if config.trainer.precision == "16-mixed" and config.faults.loss_spike is not None:
        advice = "Lightning's scaler decides which float16 updates are applied; use null, or bf16-mixed"
        yield Problem("faults.loss_spike", config.faults.loss_spike, advice)


def _optimizer(config: Config, world: World) -> Iterator[Problem]:
    optimizer = config.optimizer
    if isinstance(optimizer, SGDConfig) and optimizer.nesterov and optimizer.momentum == 0:
        yield Problem("optimizer.nesterov", True, "needs optimizer.momentum > 0, or nesterov=false")


def _strategy(config: Config, world: World, task: TaskSpec) -> Iterator[Problem]:
    strategy, name = config.strategy, config.strategy.name
    if isinstance(strategy, DDPConfig):
        yield from _ddp(config, strategy, world)
    if not shards_state(strategy):
        return
    if config.trainer.precision == "16-mixed":
        advice = f"{name} cannot scale the loss over its shards; use bf16-mixed, or strategy=ddp"
        yield Problem("trainer.precision", "16-mixed", advice)
    if name.startswith("deepspeed") and config.checkpoint.format == "sharded":
        advice = f"{name} holds shards of flattened groups, which only it could read; use full, or strategy=fsdp2"
        yield Problem("checkpoint.format", "sharded", advice)
    if config.optimizer.name == "muon":
        yield Problem("optimizer", "muon", f"needs full matrices, which {name} shards; use adamw, or strategy=ddp")
    if name.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        yield Problem("strategy", name, "the package deepspeed is not installed; use fsdp2 or ddp")
    if name.startswith("deepspeed") and config.faults.loss_spike is not None:
        advice = f"{name} decides by itself which updates it applies; use null, or fsdp2 or ddp"
        yield Problem("faults.loss_spike", config.faults.loss_spike, advice)
    every_n_steps = config.faults.verify_replicas_every_n_steps
    if every_n_steps is not None and not isinstance(strategy, DeepSpeedFileConfig) and shards_parameters(strategy):
        advice = f"{name} shards the weights, so no two ranks hold the same ones; use null"
        yield Problem("faults.verify_replicas_every_n_steps", every_n_steps, advice)
    problems = list(file_problems(config, world.world_size)) if isinstance(strategy, DeepSpeedFileConfig) else []
    yield from problems
    if not problems and task.needs_full_parameters and shards_parameters(strategy):
        advice = f"task={task.name} reads full weights between steps; use ddp, deepspeed_stage_1 or deepspeed_stage_2"
        yield Problem("strategy", name, advice)


def _ddp(config: Config, strategy: DDPConfig, world: World) -> Iterator[Problem]:
    share = config.batch.global_size // world.world_size
    several = config.batch.micro_size == "auto" or (config.batch.fixed_micro_size or share) < share
    if strategy.static_graph and several:
        advice = "torch cannot record the graph of several micro-batches; use false, or batch.micro_size=null"
        yield Problem("strategy.static_graph", True, advice)
    if strategy.gradient_compression == "bf16" and world.accelerator == "cpu":
        yield Problem("strategy.gradient_compression", "bf16", "needs GPUs; possible here: none, fp16, powersgd")


def _monitor(config: Config, world: World) -> Iterator[Problem]:
    if not config.monitor.metric.startswith("val/"):
        advice = "must be a validation metric, such as val/loss or val/accuracy"
        yield Problem("monitor.metric", config.monitor.metric, advice)
    if config.monitor.patience is not None and config.trainer.limit_val_batches == 0:
        yield Problem("monitor.patience", config.monitor.patience, "needs evaluations: trainer.limit_val_batches > 0")


def _init(config: Config, world: World) -> Iterator[Problem]:
    init = config.init
    if init.from_ is not None and init.ckpt_path is not None:
        advice = "continues a whole state, weights included; leave out init.from, or give only init.from"
        yield Problem("init.ckpt_path", init.ckpt_path, advice)
    if init.sha256 is not None and init.from_ is None and init.ckpt_path is None:
        yield Problem("init.sha256", init.sha256, "has no effect without init.from or init.ckpt_path")
    if init.strict and init.from_ is None:
        yield Problem("init.strict", True, "has no effect without init.from")


def _run(config: Config, world: World) -> Iterator[Problem]:
    name = config.run.name
    if name is not None and (not name or "/" in name or name.startswith(".")):
        yield Problem("run.name", name, "must be a plain file name")
    elif name is not None and not name.isprintable():
        yield Problem("run.name", name, "must be a plain file name, without control characters")
    root = Path(config.run.root)
    existing = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    if not existing.is_dir():
        yield Problem("run.root", config.run.root, f"{existing} is a file, not a directory")
    elif not os.access(existing, os.W_OK):
        yield Problem("run.root", config.run.root, f"{existing} is not writable")
