"""Configuration -> Lightning strategy."""

from __future__ import annotations

from datetime import timedelta

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy, Strategy

from trainer.config import Config, DDPConfig
from trainer.launch import World
from trainer.strategies.ddp import NetworkDDPStrategy


def build_strategy(config: Config, world: World, device: torch.device) -> Strategy:
    """The strategy of this rank; `auto` is the device itself for one process and ddp for several."""
    if world.world_size == 1:
        return SingleDeviceStrategy(device)
    options = {}
    if isinstance(config.strategy, DDPConfig):
        options = {"static_graph": config.strategy.static_graph, "bucket_cap_mb": config.strategy.bucket_cap_mb}
    return NetworkDDPStrategy(timeout=timedelta(seconds=config.launch.timeout_s), **options)
