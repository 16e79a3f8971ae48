"""Estimated memory of a step on each device.

Weights, gradients and optimizer state follow from the number of parameters (Rajbhandari et al. 2020, section 3);
activations from the task's count of what its networks keep for the backward pass. Communication buffers, the
allocator's rounding and library workspaces are not counted: add 10 to 30 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.config.groups import SGDConfig
from trainer.config.schema import OptimizerConfig, StrategyConfig
from trainer.config.strategies import DeepSpeedFileConfig, FSDP2Config, ZeroConfig

FLOAT32, HALF = 4, 2


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a task's networks and data, known before they are built.

    parameters: by network. trained: those with a gradient. activation_bytes: kept for the backward pass for one sample,
    in float32; None where that is not known. num_samples: of the training set; None until the data is read.
    """

    parameters: Mapping[str, int]
    trained: int
    activation_bytes: int | None
    num_samples: int | None
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """Parameters of all networks."""
        return sum(self.parameters.values())


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. activations: None where they are not known. host: on the node, for this rank."""

    weights: float
    gradients: float
    optimizer: float
    activations: float | None
    host: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the device, without activations where they are not known."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0.0)


def estimate(
    strategy: StrategyConfig, precision: str, optimizer: OptimizerConfig, sizes: ModelSizes, ranks: int, micro: int
) -> Memory | None:
    """Memory of one rank. Args: micro: samples of a micro-batch. Returns: None where DeepSpeed's file decides."""
    if isinstance(strategy, DeepSpeedFileConfig):
        return None
    width = HALF if precision == "bf16-true" else FLOAT32
    weights, gradients = width * sizes.total, width * sizes.trained
    state = state_bytes(optimizer, width) * sizes.trained
    activations = activation_bytes(sizes, precision, micro)
    if isinstance(strategy, FSDP2Config):
        if strategy.cpu_offload:
            return Memory(0, 0, 0, activations, (weights + gradients + state) / ranks)
        return Memory(weights / ranks, gradients / ranks, state / ranks, activations)
    if not isinstance(strategy, ZeroConfig):
        return Memory(weights, gradients, state, activations)
    # DeepSpeed steps on a float32 copy of each rank's shard.
    sharded_state = (state_bytes(optimizer, FLOAT32) + FLOAT32) * sizes.trained / ranks
    gradients = gradients / ranks if strategy.stage >= 2 else gradients
    weights = weights / ranks if strategy.stage == 3 else weights
    if not strategy.offload:
        return Memory(weights, gradients, sharded_state, activations)
    if strategy.stage == 3:
        return Memory(0, gradients, 0, activations, sharded_state + weights)
    return Memory(weights, gradients, 0, activations, sharded_state)


def state_bytes(optimizer: OptimizerConfig, width: int) -> int:
    """Bytes of optimizer state for one trained parameter: running averages of its gradient."""
    if isinstance(optimizer, SGDConfig):
        return width if optimizer.momentum else 0
    # Muon keeps one average for hidden weights, which are nearly all; Adam and AdamW keep two.
    return width if optimizer.name == "muon" else 2 * width


def activation_bytes(sizes: ModelSizes, precision: str, micro: int) -> float | None:
    """Bytes kept for the backward pass of one micro-batch; half as many where the forward pass has half the width."""
    if sizes.activation_bytes is None:
        return None
    return sizes.activation_bytes * micro * (1.0 if precision == "32-true" else HALF / FLOAT32)
