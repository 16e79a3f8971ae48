"""Configuration -> Lightning strategy."""

from __future__ import annotations

from datetime import timedelta

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy, Strategy

from trainer.config.schema import Config
from trainer.config.strategies import DDPConfig, DeepSpeedFileConfig, FSDP2Config, ZeroConfig
from trainer.network_strategy import NetworkStrategy
from trainer.strategies.ddp import NetworkDDPStrategy
from trainer.world import World


class SingleStrategy(NetworkStrategy, SingleDeviceStrategy):
    """Lightning's strategy for one process, with the defaults of NetworkStrategy."""


def build_strategy(config: Config, world: World, device: torch.device) -> Strategy:
    """Build this rank's strategy; `auto` is the plain device for one process and ddp for several.

    Raises: UserError: DeepSpeed's file cannot be read.
    """
    options, timeout = config.strategy, timedelta(seconds=config.launch.timeout_s)
    if isinstance(options, FSDP2Config):
        from trainer.strategies.fsdp2 import FSDP2Strategy

        return FSDP2Strategy(options, timeout, gathers=config.checkpoint.format == "full")
    if isinstance(options, (ZeroConfig, DeepSpeedFileConfig)):
        from trainer.config.deepspeed import engine_config
        from trainer.strategies.deepspeed import DeepSpeedStrategy

        return DeepSpeedStrategy(engine_config(config, world.world_size), timeout)
    if world.world_size == 1:
        return SingleStrategy(device)
    return NetworkDDPStrategy(options if isinstance(options, DDPConfig) else None, timeout)
