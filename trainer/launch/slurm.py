"""SLURM's environment variables and commands: what a process can know about its job."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from trainer.config.groups import SlurmLaunchConfig
from trainer.errors import Problem, UserError, counted
from trainer.launch.network import resolve

SCONTROL_TIMEOUT_S = 10


def in_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process runs inside an allocation."""
    return "SLURM_JOB_ID" in environment


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun has started this process as one of several. A batch script is not one, nor is `srun --pty`."""
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def tasks_per_node(text: str) -> list[int]:
    """SLURM's compressed counts, one for each node: 2(x3),1 -> [2, 2, 2, 1].

    Raises: UserError: not a list of counts.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text}: not a list of counts")
        counts += [int(match.group(1))] * int(match.group(2) or 1)
    return counts


def first_host(node_list: str) -> str:
    """First host of SLURM's compressed list: node[03-07,9] -> node03. Raises: UserError: not a node list."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", node_list)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST={node_list}: not a node list")
    return match.group(1) + (match.group(2) or "")


def node_address(node: str) -> str:
    """Address of a node from DNS, or from SLURM where DNS does not know its name.

    Raises: UserError: neither has one.
    """
    found = resolve(node)
    if found is None:
        command = ["scontrol", "show", "node", "--oneliner", node]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"SLURM node {node} has no address: {error}", "set launch.endpoint=HOST:PORT") from error
        match = re.search(r"NodeAddr=(\S+)", shown.stdout)
        found = resolve(match.group(1)) if match else None
    if found is None:
        raise UserError(f"SLURM node {node} has no address", "set launch.endpoint=HOST:PORT, which all nodes can reach")
    return found


def step_port(environment: Mapping[str, str]) -> int:
    """A port that all ranks of a step derive from its number, so that simultaneous jobs on a node do not collide."""
    return 20000 + (int(environment["SLURM_JOB_ID"]) * 8 + int(environment["SLURM_STEP_ID"])) % 20000


def geometry_problems(launch: SlurmLaunchConfig, environment: Mapping[str, str]) -> list[Problem]:
    """Where the job differs from what `launch` asks for."""
    if not in_job(environment):
        return []
    problems = []
    num_nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    if not (launch.min_nodes or launch.nodes) <= num_nodes <= launch.nodes:
        problems.append(
            Problem("launch.nodes", launch.nodes, f"the ranks are on {counted(num_nodes, 'node')} of the job")
        )
    num_gpus = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    if num_gpus != launch.gpus_per_node:
        problems.append(
            Problem("launch.gpus_per_node", launch.gpus_per_node, f"SLURM gave {counted(num_gpus, 'GPU')} per node")
        )
    return problems


def allocation_problems(devices: int | str, world_size: int, environment: Mapping[str, str]) -> list[Problem]:
    """An allocation that would stay idle in part, because srun has not started the other ranks.

    Args: devices: as configured. world_size: of the ranks that this process would start.
    """
    if not in_job(environment) or "SLURM_STEP_NUM_TASKS" in environment:
        return []
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if nodes == 1 and (tasks <= world_size or devices != "auto"):
        return []
    given = f"{counted(tasks, 'task')} on {counted(nodes, 'node')}"
    advice = f"SLURM gave {given}, and this would start {counted(world_size, 'rank')} on one; use srun"
    return [Problem("trainer.devices", devices, advice)]
