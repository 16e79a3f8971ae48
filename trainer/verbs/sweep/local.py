"""Jobs of a sweep on this machine, N at a time, each in a session of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

from trainer.errors import EXIT_DONE, EXIT_STOPPED, ConfigError, Problem, counted
from trainer.faults.exit import end_with_parent
from trainer.launch.discover import plan_world
from trainer.verbs.sweep.jobs import Job, Ledger, SweepPlan
from trainer.world import num_visible_gpus

POLL_S = 0.1
OUTPUT = "output.log"


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int


def run_jobs(
    plan: SweepPlan, ledger: Ledger, next_job: Callable[[], Job | None], done: Callable[[Job], None] | None = None
) -> bool:
    """Run jobs, `sweep.parallel` at a time, until there are no more or the sweep is stopped.

    Args: next_job: the job to start next; None where there is none. done: called with each job that has ended.
    Returns: whether the sweep was stopped; its jobs have then saved, and the same command resumes them.
    """
    parallel = plan.config.sweep.parallel
    devices = _devices_per_job(plan, parallel)
    running: list[_Running] = []
    with _stopping(running) as stop:
        while True:
            while not stop and len(running) < parallel and (job := next_job()) is not None:
                slot = min(set(range(parallel)) - {other.slot for other in running})
                running.append(_Running(job, _start(plan, ledger, job, devices and devices[slot]), slot))
            if not running:
                return bool(stop)
            time.sleep(POLL_S)
            for ended in [one for one in running if one.process.poll() is not None]:
                running.remove(ended)
                _settle(plan, ledger, ended)
                if done is not None:
                    done(ended.job)


def _devices_per_job(plan: SweepPlan, parallel: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each simultaneous job; empty where jobs do not share GPUs.

    Raises: ConfigError: there are not enough GPUs.
    """
    world = plan_world(plan.config.trainer, plan.config.launch)
    if parallel == 1 or world.accelerator == "cpu":
        return []
    needed, available = parallel * world.local_world_size, num_visible_gpus()
    if needed > available:
        wanted = f"{parallel} jobs x {counted(world.local_world_size, 'GPU')}"
        advice = f"{wanted} of {available} visible; set trainer.devices"
        raise ConfigError([Problem("sweep.parallel", parallel, advice)])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(available)))).split(",")
    size = world.local_world_size
    return [",".join(visible[slot * size : (slot + 1) * size]) for slot in range(parallel)]


def _start(plan: SweepPlan, ledger: Ledger, job: Job, devices: str | list[str]) -> subprocess.Popen[bytes]:
    total = len(plan.grid) or getattr(plan.config.sweep, "num_trials", 0)
    print(f"job {job.number} of {total}: {' '.join(job.words)}", flush=True)
    root = plan.job_root(job)
    root.mkdir(parents=True, exist_ok=True)
    job.status = "running"
    ledger.save()
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": str(devices)} if devices else {})}
    # A single job prints to the terminal; the output of several would be mixed.
    output = None if plan.config.sweep.parallel == 1 else (root / OUTPUT).open("ab")
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", *plan.line(job)],
            env=environment,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[ledger.lock.fileno()],
            # The job saves and ends when the sweep dies.
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
    finally:
        if output is not None:
            output.close()


def _settle(plan: SweepPlan, ledger: Ledger, ended: _Running) -> None:
    job, code = ended.job, ended.process.returncode
    job.exit_code = code
    job.status = "finished" if code == EXIT_DONE else "stopped" if code == EXIT_STOPPED else "failed"
    plan.refresh(job)
    ledger.save()
    reached = f", {plan.config.monitor.metric} {job.value:.6g}" if job.value is not None else ""
    where = f"; see {plan.job_root(job) / OUTPUT}" if code and plan.config.sweep.parallel > 1 else ""
    print(f"job {job.number} {job.status}{reached}{where}", flush=True)


@contextmanager
def _stopping(running: list[_Running]) -> Iterator[list[int]]:
    """Forward SIGINT and SIGTERM to the jobs. Yields: the signals received so far."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for one in running:
            one.process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
