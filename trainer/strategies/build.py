"""Configuration -> Lightning strategy."""

from __future__ import annotations

from datetime import timedelta

import torch
from pytorch_lightning.strategies import Strategy

from trainer.config import Config
from trainer.launch.world import World
from trainer.strategies.config import DDPConfig, DeepSpeedFileConfig, FSDP2Config, ZeroConfig
from trainer.strategies.ddp import NetworkDDPStrategy
from trainer.strategies.networks import SingleStrategy


def build_strategy(config: Config, world: World, device: torch.device) -> Strategy:
    """The strategy of this rank; `auto` is the device itself for one process and ddp for several."""
    options, timeout = config.strategy, timedelta(seconds=config.launch.timeout_s)
    if isinstance(options, FSDP2Config):
        from trainer.strategies.fsdp2 import FSDP2Strategy

        return FSDP2Strategy(options, timeout)
    if isinstance(options, (ZeroConfig, DeepSpeedFileConfig)):
        from trainer.strategies.deepspeed import DeepSpeedStrategy
        from trainer.strategies.deepspeed_config import engine_config

        return DeepSpeedStrategy(engine_config(config, world.world_size), timeout)
    if world.world_size == 1:
        return SingleStrategy(device)
    return NetworkDDPStrategy(options if isinstance(options, DDPConfig) else None, timeout)
