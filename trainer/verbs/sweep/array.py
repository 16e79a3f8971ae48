"""A sweep as a SLURM array: one task for each job."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from trainer.config.groups import OptunaConfig, SlurmLaunchConfig
from trainer.errors import EXIT_DONE, ConfigError, Problem, UserError, counted
from trainer.launch.submit import job_script, shell_words, submit_script
from trainer.run.files import write_text
from trainer.run.opening import open_stored_run
from trainer.verbs.sweep.jobs import Job, Ledger, SweepPlan
from trainer.verbs.sweep.table import print_table

ARRAY_FILE = "array"
SQUEUE_TIMEOUT_S = 60
# What squeue says of a job that SLURM has removed from its records, minutes after its end.
FORGOTTEN = "Invalid job id"


def submit_jobs(plan: SweepPlan) -> int:
    """Submit the jobs that are not finished, or print their status while some are queued. Returns: exit code.

    Raises: ConfigError: a search, which needs one job's result to choose the next. UserError: the sweep is being
        submitted elsewhere, or SLURM does not answer.
    """
    launch = plan.config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    if isinstance(plan.config.sweep, OptunaConfig):
        raise ConfigError([Problem("sweep", "optuna", "a search chooses by results; run it inside an allocation")])
    ledger = Ledger.open(plan)
    for job in ledger.jobs:
        _refresh(plan, job)
    ledger.save()
    array = plan.directory / ARRAY_FILE
    queued = num_queued(array.read_text(encoding="utf-8")) if array.exists() else 0
    pending = [job for job in ledger.jobs if job.status != "finished"]
    if queued or not pending:
        print_table(plan, ledger.jobs)
        print(f"{counted(queued, 'job')} still in SLURM's queue" if queued else "all jobs are finished")
        return EXIT_DONE
    log = plan.directory.resolve() / "job-%a.log"
    limit = f"%{plan.config.sweep.parallel}" if plan.config.sweep.parallel > 1 else ""
    option = f"--array={','.join(str(job.number) for job in pending)}{limit}"
    text = job_script(plan.config, plan.directory.name, log, _words_by_task(plan, pending), [option])
    if launch.dry_run:
        print(text, end="")
        return EXIT_DONE
    number = submit_script(text, plan.directory / "array.sbatch")
    write_text(array, number)
    print(f"job {number}: {counted(len(pending), 'job')} of {plan.directory}")
    print(f"  follow   tail -F {shlex.quote(str(log.parent))}/job-*.log")
    print(f"  state    squeue --job {number}, or the same command again")
    print(f"  cancel   scancel {number}")
    return EXIT_DONE


def _words_by_task(plan: SweepPlan, jobs: Sequence[Job]) -> list[str]:
    cases = [f"  {job.number}) words=({shell_words(plan.line(job))}) ;;" for job in jobs]
    return ["case $SLURM_ARRAY_TASK_ID in", *cases, "esac"]


def _refresh(plan: SweepPlan, job: Job) -> None:
    """Take the status from the job's run record: no parent process waits for the jobs of an array."""
    run_dir: Path | None = plan.run_dir(job)
    if run_dir is not None:
        status = open_stored_run(run_dir)["status"]
        job.status = "pending" if status == "created" else status
    plan.refresh(job)


def num_queued(number: str) -> int:
    """Tasks of an array that have not ended; 0 where SLURM has removed it from its records.

    Raises: UserError: SLURM does not answer, so that tasks may still be queued.
    """
    command = ["squeue", "--noheader", "--array", f"--job={number}"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SQUEUE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if shown.returncode == 0:
            return len(shown.stdout.splitlines())
        reason = shown.stderr.strip() or f"exit code {shown.returncode}"
        if FORGOTTEN in reason:
            return 0
    raise UserError(
        f"squeue: {reason}", f"job {number} of this sweep may still be queued; try again when SLURM answers"
    )
