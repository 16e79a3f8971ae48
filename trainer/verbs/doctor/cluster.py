"""SLURM: the job that the configuration would submit, or the one this process is in. Torch-free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from trainer.config.groups import SlurmLaunchConfig
from trainer.config.schema import Config
from trainer.errors import EXIT_DONE
from trainer.launch import slurm
from trainer.launch.submit import job_script, submits
from trainer.verbs.doctor.child import run_child
from trainer.verbs.doctor.report import Finding
from trainer.world import World

TIME_LIMIT_S = 8.0
# A partition a line: name, nodes, generic resources of a node, time limit.
SINFO_FORMAT = "%R|%D|%G|%l"


def check_slurm(config: Config, world: World) -> Iterator[Finding]:
    """SLURM would take the job; what differs inside a job is told with the configuration."""
    if submits(config):
        yield from _submission(config)
    elif slurm.in_job():
        given = {name: os.environ.get(f"SLURM_{name}", "?") for name in ("JOB_ID", "JOB_NUM_NODES", "NTASKS")}
        found = f"job {given['JOB_ID']}: {given['JOB_NUM_NODES']} node(s), {given['NTASKS']} task(s)"
        yield Finding("SLURM", "ok", f"{found}; {world.world_size} rank(s) by {world.launcher}")
    else:
        yield Finding("SLURM", "skipped", "launch=local, and this is no job")


def _submission(config: Config) -> Iterator[Finding]:
    """Let sbatch check the very script that would be submitted; it starts nothing."""
    launch = config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    if shutil.which("sbatch") is None:
        remedy = "log in to the cluster, load its SLURM module, or print the script with launch.dry_run=true"
        yield Finding("SLURM", "failure", "there is no sbatch here", remedy)
        return
    script = job_script(config, "doctor", Path(launch.log_dir).resolve() / "%x-%j.log", ["words=()"])
    child = run_child(["sbatch", "--test-only"], TIME_LIMIT_S, script)
    where = f"partition {launch.partition}" if launch.partition else "the default partition"
    asked = f"{launch.nodes} node(s), {launch.gpus_per_node} GPU(s) each, {where}"
    if child.code == EXIT_DONE:
        yield Finding("SLURM", "ok", f"sbatch takes {asked}")
        return
    if child.code is None:
        remedy = "is this a login node of the cluster? `scontrol ping` shows whether SLURM answers"
        yield Finding("SLURM", "failure", f"sbatch: {child.error_line}", remedy)
        return
    remedy = "change launch.partition, launch.nodes, launch.gpus_per_node, launch.time_limit or launch.account"
    if partitions := _partitions():
        remedy += f"; partitions here: {partitions}"
    yield Finding("SLURM", "failure", f"sbatch refuses {asked}: {child.error_line}", remedy)


def _partitions() -> str:
    """What sinfo tells of them; nothing where it cannot be asked."""
    if shutil.which("sinfo") is None:
        return ""
    child = run_child(["sinfo", "--noheader", f"--format={SINFO_FORMAT}"], TIME_LIMIT_S)
    rows = [line.split("|") for line in child.output.split() if line.count("|") == 3] if child.code == EXIT_DONE else []
    return ", ".join(f"{name} ({nodes} nodes, {gpus}, at most {limit})" for name, nodes, gpus, limit in rows)
