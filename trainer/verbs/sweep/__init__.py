"""-m: a job for each combination of comma-separated values, or for each trial of a search.

The jobs of a sweep are ordinary runs below <run.root>/sweeps/<task>-<hash8>/job-NNN/, each in processes of its own.
ledger.json beside them holds the status of each job; the same command continues an unfinished sweep.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.config.groups import OptunaConfig
from trainer.errors import EXIT_BUG, EXIT_DONE, EXIT_STOPPED, UserError
from trainer.launch.discover import is_joined
from trainer.launch.submit import submits
from trainer.verbs.prepare import Options
from trainer.verbs.sweep.jobs import Ledger, plan_sweep
from trainer.verbs.sweep.table import print_table

__all__ = ["sweep"]


def sweep(overrides: Sequence[str], options: Options) -> int:
    """Run the jobs that are not finished; a failed one does not stop the others. Returns: exit code.

    Raises: UserError: a job's configuration is invalid, or the sweep is in use.
    """
    if is_joined():
        raise UserError("-m: a sweep starts its own ranks", "start it without torchrun or srun")
    plan = plan_sweep(overrides, options)
    if submits(plan.config):
        from trainer.verbs.sweep.array import submit_jobs

        return submit_jobs(plan)
    ledger = Ledger.open(plan)
    if isinstance(plan.config.sweep, OptunaConfig):
        from trainer.verbs.sweep.search import search

        stopped = search(plan, ledger)
    else:
        from trainer.verbs.sweep.local import run_jobs

        pending = (job for job in ledger.jobs if job.status != "finished")
        stopped = run_jobs(plan, ledger, lambda: next(pending, None))
    print_table(plan, ledger.jobs)
    failed = [job for job in ledger.jobs if job.status == "failed"]
    for job in failed:
        print(f"job {job.number} failed with exit code {job.exit_code}: {' '.join(job.words)}", file=sys.stderr)
    if stopped:
        return EXIT_STOPPED
    return EXIT_BUG if failed else EXIT_DONE
