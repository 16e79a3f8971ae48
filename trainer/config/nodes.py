"""How many nodes a run may be on, and which of those numbers the configuration rules out."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainer.config.groups import SlurmLaunchConfig
from trainer.config.schema import Config, LaunchConfig, TrainerConfig
from trainer.config.strategies import DDPConfig, DeepSpeedFileConfig, ZeroConfig
from trainer.errors import Problem, counted


def planned_nodes(trainer: TrainerConfig, launch: LaunchConfig) -> int:
    """Nodes of a run that loses none."""
    return launch.nodes if isinstance(launch, SlurmLaunchConfig) else trainer.num_nodes


def node_range(trainer: TrainerConfig, launch: LaunchConfig) -> tuple[int, int]:
    """Fewest and most nodes that a run may be on."""
    nodes = planned_nodes(trainer, launch)
    return launch.min_nodes or nodes, launch.max_nodes or nodes


def node_problems(config: Config, local_world_size: int) -> Iterator[Problem]:
    """Numbers of nodes within the range that could never train, named before the first node starts.

    Any other number works: ranks take shares of a batch that differ by one sample (trainer/data/samplers.py).
    """
    launch = config.launch
    low, high = node_range(config.trainer, launch)
    planned_key = "launch.nodes" if isinstance(launch, SlurmLaunchConfig) else "trainer.num_nodes"
    if low > high:
        other = f"launch.max_nodes={high}" if launch.max_nodes else f"{planned_key}={high}, which is also the most"
        yield Problem("launch.min_nodes", low, f"more than {other}")
        return
    if isinstance(launch, SlurmLaunchConfig):
        for key in ("min_nodes", "max_nodes"):
            if (getattr(launch, key) or 0) > launch.nodes:
                yield Problem(f"launch.{key}", getattr(launch, key), f"the job has launch.nodes={launch.nodes}")
    if low < high:
        yield from _resized_problems(config, local_world_size, low, high)


def _resized_problems(config: Config, local_world_size: int, low: int, high: int) -> Iterator[Problem]:
    size, strategy = config.batch.global_size, config.strategy
    if isinstance(strategy, ZeroConfig | DeepSpeedFileConfig):
        # DeepSpeed computes the batch as ranks x micro-batches x their size, and refuses any other.
        ranks = [nodes * local_world_size for nodes in range(low, high + 1)]
        if any(size % number for number in ranks):
            advice = f"{strategy.name} on {low} to {high} nodes needs a multiple of {math.lcm(*ranks)}; or use fsdp2"
            yield Problem("batch.global_size", size, advice)
    micro = config.batch.fixed_micro_size
    largest_share = -(-size // (low * local_world_size))
    if isinstance(strategy, DDPConfig) and strategy.static_graph and micro is not None and micro < largest_share:
        advice = f"on {counted(low, 'node')} a rank has {largest_share} samples, several micro-batches of {micro}"
        yield Problem("strategy.static_graph", True, f"{advice}; use false, or leave out batch.micro_size")
