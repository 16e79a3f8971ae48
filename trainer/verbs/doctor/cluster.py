"""SLURM: the job that the configuration would submit, or the job of this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from trainer.config.groups import SlurmLaunchConfig
from trainer.config.schema import Config
from trainer.errors import EXIT_DONE, counted
from trainer.launch import slurm
from trainer.launch.submit import job_script, submits
from trainer.verbs.doctor.child import run_child
from trainer.verbs.doctor.report import Finding
from trainer.world import World

# One line for each partition: name, nodes, generic resources of a node, time limit.
SINFO_FORMAT = "%R|%D|%G|%l"


def check_slurm(config: Config, world: World) -> Iterator[Finding]:
    """SLURM accepts the job. Inside a job, check_configuration compares it with what was asked for."""
    if submits(config):
        yield from _submission(config)
    elif slurm.in_job():
        given = {name: int(os.environ.get(f"SLURM_{name}", "1")) for name in ("JOB_NUM_NODES", "NTASKS")}
        found = f"{counted(given['JOB_NUM_NODES'], 'node')}, {counted(given['NTASKS'], 'task')}"
        ranks = f"{counted(world.world_size, 'rank')} by {world.launcher}"
        yield Finding("SLURM", "ok", f"job {os.environ['SLURM_JOB_ID']}: {found}; {ranks}")
    else:
        yield Finding("SLURM", "skipped", "launch=local, not inside a job")


def _submission(config: Config) -> Iterator[Finding]:
    """Let sbatch check the script that would be submitted, without submitting it."""
    launch = config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    if shutil.which("sbatch") is None:
        remedy = "log in to the cluster, load its SLURM module, or print the script with launch.dry_run=true"
        yield Finding("SLURM", "failure", "there is no sbatch here", remedy)
        return
    script = job_script(config, "doctor", Path(launch.log_dir).resolve() / "%x-%j.log", ["words=()"])
    child = run_child(["sbatch", "--test-only"], text=script)
    where = f"partition {launch.partition}" if launch.partition else "the default partition"
    asked = f"{counted(launch.nodes, 'node')}, {counted(launch.gpus_per_node, 'GPU')} each, {where}"
    if child.code == EXIT_DONE:
        yield Finding("SLURM", "ok", f"sbatch accepts {asked}")
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
    """The partitions of the cluster by sinfo; empty where it fails."""
    if shutil.which("sinfo") is None:
        return ""
    child = run_child(["sinfo", "--noheader", f"--format={SINFO_FORMAT}"])
    rows = [line.split("|") for line in child.output.split() if line.count("|") == 3] if child.code == EXIT_DONE else []
    return ", ".join(f"{name} ({nodes} nodes, {gpus}, at most {limit})" for name, nodes, gpus, limit in rows)
