"""Which ranks a run has: from the configuration, from torchrun's or SLURM's environment, checked against each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from trainer.config.groups import SlurmLaunchConfig
from trainer.config.nodes import node_range, planned_nodes
from trainer.config.schema import LaunchConfig, TrainerConfig
from trainer.errors import ConfigError, Problem, counted
from trainer.launch import slurm
from trainer.launch.network import parse_endpoint
from trainer.world import Accelerator, World, num_visible_gpus


def plan_world(trainer: TrainerConfig, launch: LaunchConfig, environment: Mapping[str, str] = os.environ) -> World:
    """The ranks that `trainer.devices`, `num_nodes` and `accelerator` give on this machine.

    Raises: ConfigError: more devices than there are, or other numbers than the launcher gave. UserError: the node where
        the ranks meet has no address.
    """
    num_gpus = num_visible_gpus(environment)
    if trainer.accelerator == "cuda" and num_gpus == 0:
        raise ConfigError([Problem("trainer.accelerator", "cuda", "no GPU is visible here; possible: cpu, auto")])
    accelerator = "cuda" if trainer.accelerator != "cpu" and num_gpus else "cpu"
    if isinstance(launch, SlurmLaunchConfig) and (problems := slurm.geometry_problems(launch, environment)):
        raise ConfigError(problems)
    joined = joined_world(accelerator, launch, environment)
    if joined is not None:
        _check_joined(trainer, launch, joined, environment)
        low, high = node_range(trainer, launch)
        return replace(joined, resized=low < high and joined.num_nodes != planned_nodes(trainer, launch))
    if node_range(trainer, launch)[1] > 1 and rendezvous_endpoint(launch, environment) is None:
        advice = "start the same command with torchrun or srun on each node, or name one: launch.endpoint=HOST:PORT"
        raise ConfigError([Problem("trainer.num_nodes", trainer.num_nodes, advice)])
    devices = (num_gpus if accelerator == "cuda" else 1) if trainer.devices == "auto" else trainer.devices
    if accelerator == "cuda" and devices > num_gpus:
        raise ConfigError([Problem("trainer.devices", devices, f"{counted(num_gpus, 'GPU')} visible here")])
    world = _started_world(accelerator, devices, planned_nodes(trainer, launch))
    if problems := slurm.allocation_problems(trainer.devices, world.world_size, environment):
        raise ConfigError(problems)
    return world


def planned_world(trainer: TrainerConfig, launch: LaunchConfig) -> World:
    """The ranks that the configuration asks for, whether or not their devices are here.

    accelerator=auto is what this machine has, as in a run; accelerator=cuda plans for GPUs of another machine.
    Raises: ConfigError: numbers that contradict.
    """
    return submitted_world(trainer, launch) if isinstance(launch, SlurmLaunchConfig) else requested_world(trainer)


def requested_world(trainer: TrainerConfig) -> World:
    """The ranks that `trainer.devices`, `num_nodes` and `accelerator` ask for, also where their devices are missing."""
    num_gpus = num_visible_gpus()
    on_gpus = trainer.accelerator == "cuda" or (trainer.accelerator == "auto" and num_gpus > 0)
    local = max(1, num_gpus if on_gpus else 1) if trainer.devices == "auto" else trainer.devices
    return _started_world("cuda" if on_gpus else "cpu", local, trainer.num_nodes)


def _started_world(accelerator: Accelerator, local: int, nodes: int) -> World:
    """Ranks that the trainer itself starts."""
    return World("single" if local * nodes == 1 else "elastic", accelerator, local * nodes, local, nodes)


def submitted_world(trainer: TrainerConfig, launch: LaunchConfig) -> World:
    """The ranks of a batch job, whatever this machine has. Raises: ConfigError: numbers that contradict."""
    assert isinstance(launch, SlurmLaunchConfig)
    accelerator = "cuda" if launch.gpus_per_node else "cpu"
    local = (launch.gpus_per_node or 1) if trainer.devices == "auto" else trainer.devices
    problems = []
    if trainer.accelerator not in ("auto", accelerator):
        advice = f"launch.gpus_per_node={launch.gpus_per_node}"
        problems.append(Problem("trainer.accelerator", trainer.accelerator, advice))
    if trainer.num_nodes not in (1, launch.nodes):
        problems.append(Problem("trainer.num_nodes", trainer.num_nodes, f"launch.nodes={launch.nodes}; leave one out"))
    if accelerator == "cuda" and local > launch.gpus_per_node:
        problems.append(Problem("trainer.devices", local, f"launch.gpus_per_node={launch.gpus_per_node}"))
    if problems:
        raise ConfigError(problems)
    return World("slurm", accelerator, local * launch.nodes, local, launch.nodes)


def rendezvous_endpoint(launch: LaunchConfig, environment: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Where the ranks of several nodes meet: (host, port) as configured, or on the first node of a SLURM step."""
    if launch.endpoint is not None:
        return parse_endpoint(launch.endpoint)
    if not slurm.is_rank(environment):
        return None
    node = slurm.first_host(environment["SLURM_STEP_NODELIST"])
    return slurm.node_address(node), slurm.step_port(environment)


def is_joined(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or srun has started this process as one of several ranks."""
    return "TORCHELASTIC_RUN_ID" in environment or slurm.is_rank(environment)


def joined_world(
    accelerator: Accelerator, launch: LaunchConfig, environment: Mapping[str, str] = os.environ
) -> World | None:
    """The world that torchrun or srun has put this process into, if one has."""
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        size = int(environment["WORLD_SIZE"])
        rank, local_rank = int(environment["RANK"]), int(environment["LOCAL_RANK"])
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        return World("torchrun", accelerator, size, local, size // local, rank, local_rank, address, port)
    # With one task a node, each task is the agent that starts its node's ranks.
    agents = isinstance(launch, SlurmLaunchConfig) and launch.starter == "torchrun"
    if slurm.is_rank(environment) and not agents:
        size, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
        rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        address, port = "127.0.0.1", slurm.step_port(environment)
        if nodes > 1:
            address, port = rendezvous_endpoint(launch, environment) or (address, port)
        return World("slurm", accelerator, size, size // nodes, nodes, rank, local_rank, address, port)
    return None


def _check_joined(trainer: TrainerConfig, launch: LaunchConfig, world: World, environment: Mapping[str, str]) -> None:
    problems = []
    if trainer.devices not in ("auto", world.local_world_size):
        started = counted(world.local_world_size, "rank")
        advice = f"{world.launcher} started {started} on this node; leave it out or make it equal"
        problems.append(Problem("trainer.devices", trainer.devices, advice))
    low, high = node_range(trainer, launch)
    if high > 1 and not low <= world.num_nodes <= high:
        advice = f"{world.launcher} spans {counted(world.num_nodes, 'node')}"
        problems.append(Problem("trainer.num_nodes", trainer.num_nodes, advice))
    if world.launcher == "slurm" and len(set(slurm.tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"]))) > 1:
        advice = f"srun started {environment['SLURM_STEP_TASKS_PER_NODE']} tasks; use --ntasks-per-node"
        problems.append(Problem("trainer.devices", trainer.devices, advice))
    num_gpus = int(environment.get("SLURM_GPUS_ON_NODE", num_visible_gpus(environment)))
    if world.accelerator == "cuda" and world.local_world_size > num_gpus:
        advice = f"{world.launcher} started {world.local_world_size} ranks on a node with {counted(num_gpus, 'GPU')}"
        problems.append(Problem("trainer.devices", trainer.devices, advice))
    if problems:
        raise ConfigError(problems)
