"""What each member of the strategy group asks. Torch-free."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.schema import Count, StrategyConfig, settings


@settings
class DDPConfig(StrategyConfig):
    """Each rank holds the whole model; gradients are averaged."""

    static_graph: bool
    """Promise that every step uses the same parameters, which saves bookkeeping."""
    bucket_cap_mb: Count
    """Size of a gradient bucket, MiB."""
    gradient_compression: Literal["none", "fp16", "bf16", "powersgd"]
    """What gradients become on their way between ranks; powersgd is a low-rank approximation."""
    powersgd_rank: Count
    """Rank of the approximation."""
    powersgd_start_step: Annotated[int, Field(ge=2)]
    """Steps before which powersgd sends gradients whole."""


@settings
class FSDP2Config(StrategyConfig):
    """Each rank holds a part of every weight, gradient and optimizer state; blocks are gathered when they run."""

    reshard_after_forward: bool
    """Let go of a block's weights between forward and backward: less memory, one more gathering."""
    activation_checkpointing: bool
    """Compute a block's activations again in the backward instead of keeping them."""
    cpu_offload: bool
    """Keep parts in host memory while they are not needed."""


@settings
class ZeroConfig(StrategyConfig):
    """DeepSpeed ZeRO: the name says the stage, and whether state is kept in host memory."""

    overlap_comm: bool
    """Exchange gradients while the backward goes on."""
    bucket_size: Count
    """Elements that are exchanged at once."""

    @property
    def stage(self) -> int:
        """1 divides optimizer state among ranks, 2 also gradients, 3 also weights."""
        match = re.search(r"stage_(\d)", self.name)
        return int(match.group(1)) if match else 0

    @property
    def offload(self) -> bool:
        """Optimizer state, and weights at stage 3, stay in host memory."""
        return self.name.endswith("_offload")


@settings
class DeepSpeedFileConfig(StrategyConfig):
    """DeepSpeed by its own configuration file."""

    config: str
    """JSON file; what it says of batch, accumulation, clipping, precision, optimizer and schedule must be ours."""


def shards_state(strategy: StrategyConfig) -> bool:
    """Whether ranks hold different parts of a model's state; such a strategy takes part also in a single process."""
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
