"""Schemas of the members of the strategy group."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.schema import Count, StrategyConfig, settings


@settings
class DDPConfig(StrategyConfig):
    """Each rank holds the full model; gradients are averaged."""

    static_graph: bool
    """Declare that every step uses the same parameters, which saves bookkeeping."""
    bucket_cap_mb: Count
    """Size of a gradient bucket, MiB."""
    gradient_compression: Literal["none", "fp16", "bf16", "powersgd"]
    """Compression of gradients between ranks; powersgd is a low-rank approximation."""
    powersgd_rank: Count
    """Rank of powersgd's approximation."""
    powersgd_start_step: Annotated[int, Field(ge=2)]
    """First step whose gradients powersgd compresses."""


@settings
class FSDP2Config(StrategyConfig):
    """Weights, gradients and optimizer state are sharded; a block's weights are gathered when it runs."""

    reshard_after_forward: bool
    """Free a block's weights between forward and backward: less memory, one more all-gather."""
    activation_checkpointing: bool
    """Recompute a block's activations in the backward instead of keeping them."""
    cpu_offload: bool
    """Keep shards in host memory while they are not in use."""


@settings
class ZeroConfig(StrategyConfig):
    """DeepSpeed ZeRO; stage and offloading follow from the name."""

    overlap_comm: bool
    """Reduce gradients while the backward is running."""
    bucket_size: Count
    """Elements that are reduced or gathered at once."""

    @property
    def stage(self) -> int:
        """1 shards optimizer state, 2 also gradients, 3 also weights."""
        match = re.search(r"stage_(\d)", self.name)
        return int(match.group(1)) if match else 0

    @property
    def offload(self) -> bool:
        """Whether optimizer state, and at stage 3 weights, are kept in host memory."""
        return self.name.endswith("_offload")


@settings
class DeepSpeedFileConfig(StrategyConfig):
    """DeepSpeed with its own configuration file."""

    config: str
    """JSON file; it must not contradict batch, clipping and precision, or set an optimizer or schedule."""


def shards_state(strategy: StrategyConfig) -> bool:
    """Whether any of a model's state is sharded; such a strategy is also used with a single process."""
    return isinstance(strategy, FSDP2Config | ZeroConfig | DeepSpeedFileConfig)


STRATEGIES: dict[str, type[StrategyConfig]] = {
    "auto": StrategyConfig,
    "ddp": DDPConfig,
    "fsdp2": FSDP2Config,
    "deepspeed_stage_1": ZeroConfig,
    "deepspeed_stage_2": ZeroConfig,
    "deepspeed_stage_3": ZeroConfig,
    "deepspeed_stage_2_offload": ZeroConfig,
    "deepspeed_stage_3_offload": ZeroConfig,
    "deepspeed": DeepSpeedFileConfig,
}
