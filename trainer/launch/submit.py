"""launch=slurm: write the job script and submit it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.config.groups import SlurmLaunchConfig
from trainer.config.identity import run_name
from trainer.config.schema import Config
from trainer.config.secrets import refer_to_environment
from trainer.errors import EXIT_DONE, ConfigError, Problem, UserError, counted
from trainer.faults.signals import STOP_FILE_VARIABLE
from trainer.launch.discover import submitted_world
from trainer.run.files import write_text

TEMPLATE = Path(__file__).with_name("slurm.sbatch")
JOB_MARK = "# --- the job\n"


def submits(config: Config) -> bool:
    """Whether the command becomes a batch job: SLURM is asked for, and this is not the job itself."""
    return isinstance(config.launch, SlurmLaunchConfig) and STOP_FILE_VARIABLE not in os.environ


def submit(config: Config, words: Sequence[str]) -> int:
    """Submit one run. Args: words: its command, without the verb. Returns: exit code.

    Raises: UserError: sbatch fails.
    """
    launch = config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    name = run_name(config)
    log = Path(launch.log_dir).resolve() / "%x-%j.log"
    text = job_script(config, name, log, [f"words=({shell_words(words)})"])
    if launch.dry_run:
        print(text, end="")
        return EXIT_DONE
    job = submit_script(text, log.parent / f"{name}.sbatch")
    log = log.with_name(f"{name}-{job}.log")
    print(f"job {job}: {name}, {counted(launch.nodes, 'node')}")
    print(f"  follow   tail -F {shlex.quote(str(log))}")
    print(f"  state    squeue --job {job}")
    print(f"  cancel   scancel {job}")
    return EXIT_DONE


def shell_words(words: Sequence[str]) -> str:
    """A command line for a job script. A secret of the environment, which the job has as well, becomes a reference."""
    return shlex.join(refer_to_environment(word) for word in words)


def job_script(config: Config, name: str, log: Path, assignments: Sequence[str], options: Sequence[str] = ()) -> str:
    """The text of a job script: our settings, then the body of slurm.sbatch.

    Args: assignments: shell lines that set `words`. options: additional options of sbatch.
    Raises: ConfigError: a setting has control characters; a new line would begin another line of the script.
    """
    launch = config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    _refuse_control_characters(config, name, log)
    settings = [f"#SBATCH {_quoted(option)}" for option in [*_sbatch_options(config, name, log), *options]]
    requeue = str(launch.requeue).lower()
    variables = [
        f"python={shlex.quote(launch.python or sys.executable)}",
        f"requeue={requeue}",
        f"srun_options=({shlex.join(_srun_options(launch, config))})",
        *assignments,
    ]
    body = TEMPLATE.read_text(encoding="utf-8").partition(JOB_MARK)[2]
    return "\n".join(["#!/bin/bash", *settings, *launch.setup, *variables]) + f"\n{JOB_MARK}{body}"


def _quoted(option: str) -> str:
    """A word of a #SBATCH line. sbatch reads it as a shell does, but a backslash escapes within quotes, too."""
    return shlex.quote(option).replace("\\", "\\\\")


def _refuse_control_characters(config: Config, name: str, log: Path) -> None:
    launch = config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    values = {"run.name": name, "launch.log_dir": str(log)}
    values |= {f"launch.{key}": getattr(launch, key) for key in ("partition", "account", "time_limit", "python")}
    for key in ("sbatch_options", "srun_options"):
        values |= {f"launch.{key}[{i}]": option for i, option in enumerate(getattr(launch, key))}
    problems = [
        Problem(key, value, "has control characters; a setting of a job script is one line")
        for key, value in values.items()
        if value is not None and not str(value).isprintable()
    ]
    if problems:
        raise ConfigError(problems)


def _sbatch_options(config: Config, name: str, log: Path) -> list[str]:
    launch = config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    ranks = submitted_world(config.trainer, launch).local_world_size
    tasks = ranks if launch.starter == "srun" else 1
    optional = {
        "--gpus-per-node": launch.gpus_per_node or None,
        "--cpus-per-task": launch.cpus_per_rank and launch.cpus_per_rank * ranks // tasks,
        "--time": launch.time_limit,
        "--partition": launch.partition,
        "--account": launch.account,
    }
    return [
        f"--job-name={name}",
        f"--nodes={launch.nodes}",
        f"--ntasks-per-node={tasks}",
        *(f"{option}={value}" for option, value in optional.items() if value is not None),
        # The signal goes to the ranks, not to the script: they save and stop, and srun then returns to the script.
        f"--signal=USR1@{launch.stop_before_s}",
        "--requeue" if launch.requeue else "--no-requeue",
        "--open-mode=append",
        f"--output={log}",
        *(["--no-kill"] if _survives_nodes(launch) else []),
        *launch.sbatch_options,
    ]


def _srun_options(launch: SlurmLaunchConfig, config: Config) -> list[str]:
    cpus = [option for option in _sbatch_options(config, "", Path()) if option.startswith("--cpus-per-task")]
    # srun takes --cpus-per-task from the job only before SLURM 22.05.
    return [*cpus, *(["--no-kill"] if _survives_nodes(launch) else []), *launch.srun_options]


def _survives_nodes(launch: SlurmLaunchConfig) -> bool:
    return launch.min_nodes is not None and launch.min_nodes < launch.nodes


def submit_script(text: str, path: Path) -> str:
    """Write a job script and pass it to sbatch. Returns: the job's id. Raises: UserError: sbatch fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    try:
        done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    except OSError as error:
        advice = "log in to the cluster, or print the script with launch.dry_run=true"
        raise UserError(f"launch=slurm: sbatch cannot be run here ({error.strerror})", advice) from None
    if done.returncode != 0:
        raise UserError(f"launch=slurm: {done.stderr.strip()}", f"the script is {path}")
    return done.stdout.strip().partition(";")[0]
