"""The jobs of a sweep, and the ledger with the status of each."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, TextIO

from hydra.core.override_parser.types import IntervalSweep, Override

from trainer.config.compose import parse_overrides
from trainer.config.groups import OptunaConfig
from trainer.config.loggers import wandb_of
from trainer.config.schema import Config
from trainer.config.secrets import redact_words
from trainer.errors import UserError
from trainer.run.files import LOCK_FILE, LockHeld, lock_file, read_json, write_json
from trainer.run.metrics_file import read_metrics
from trainer.verbs.prepare import Options, prepare

LEDGER = "ledger.json"
# Nodes of the configuration that say how and where a sweep runs, not what it is.
NOT_IDENTITY = ("sweep", "launch", "run")

Status = Literal["pending", "running", "finished", "stopped", "failed"]


@dataclass
class Job:
    """One run of a sweep.

    number: from 1. words: the swept overrides. value: best monitor.metric so far. trial: its number in a search.
    """

    number: int
    words: list[str]
    status: Status = "pending"
    exit_code: int | None = None
    value: float | None = None
    trial: int | None = None


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep.

    directory: holds ledger and jobs. common: words of every job. swept: overrides with several values. config: of the
    first job.
    """

    directory: Path
    common: list[str]
    swept: list[Override]
    config: Config
    grid: list[list[str]] = field(default_factory=list)

    def job_root(self, job: Job) -> Path:
        """run.root of a job."""
        return self.directory / f"job-{job.number:03d}"

    def line(self, job: Job) -> list[str]:
        """The command of a job, without the verb."""
        line = [*self.common, *job.words, f"run.root={self.job_root(job)}"]
        wandb = wandb_of(self.config)
        if wandb is not None and wandb.group is None:
            line.append(f"logger.wandb.group={self.directory.name}")
        return line

    def run_dir(self, job: Job) -> Path | None:
        """The newest run of a job; None where it has not started."""
        records = sorted(self.job_root(job).glob("*/*/run.json"), key=lambda path: path.stat().st_mtime)
        return records[-1].parent if records else None

    def refresh(self, job: Job) -> None:
        """Read the job's best value from its run."""
        run_dir, monitor = self.run_dir(job), self.config.monitor
        lines = read_metrics(run_dir) if run_dir else []
        values = [line[monitor.metric] for line in lines if monitor.metric in line]
        job.value = (max if monitor.mode == "max" else min)(values, default=None)


def plan_sweep(overrides: Sequence[str], options: Options) -> SweepPlan:
    """Expand the jobs and validate each of them before the first one starts.

    Raises: UserError: no key has several values, or a job's configuration is invalid.
    """
    parsed = parse_overrides(overrides)
    swept = [override for override in parsed if override.is_sweep_override()]
    if not swept:
        raise UserError("-m: nothing to sweep over", "give a key several values, as in optimizer.lr=0.1,0.3")
    for override in swept:
        if _node(override) in NOT_IDENTITY:
            raise UserError(f"{override.input_line}: {_node(override)} is the same for all jobs of a sweep")
    folders = [f"--config-dir={folder.resolve()}" for folder in options.config_dirs]
    words = [word for word, override in zip(overrides, parsed, strict=True) if override not in swept]
    first = prepare([*words, *(_any_value(override) for override in swept)], options).config
    grid = [] if isinstance(first.sweep, OptunaConfig) else expand(swept)
    for job in grid:
        prepare([*words, *job], options)
    common = [word for word in words if not word.startswith("run.root=")]
    defining = [word for word, override in zip(overrides, parsed, strict=True) if _node(override) not in NOT_IDENTITY]
    identity = json.dumps([first.sweep.name, *defining])
    name = f"{first.task.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return SweepPlan(Path(first.run.root) / "sweeps" / name, [*folders, *common], swept, first, grid)


def expand(swept: Sequence[Override]) -> list[list[str]]:
    """All combinations; the last key varies fastest. Raises: UserError: an interval, which cannot be enumerated."""
    choices = []
    for override in swept:
        if isinstance(override.value(), IntervalSweep):
            raise UserError(f"{override.input_line}: an interval is searched, not enumerated; add sweep=optuna")
        key = override.get_key_element()
        choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    return [list(job) for job in product(*choices)]


def _any_value(override: Override) -> str:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return f"{override.get_key_element()}={value.start}"
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _node(override: Override) -> str:
    return override.key_or_group.partition(".")[0]


class Ledger:
    """ledger.json, locked by one sweep at a time.

    The jobs inherit the lock: after a sweep was killed, it is released when its last job ends.
    """

    def __init__(self, path: Path, jobs: list[Job], lock: TextIO) -> None:
        self.path, self.jobs, self.lock = path, jobs, lock

    @classmethod
    def open(cls, plan: SweepPlan) -> Ledger:
        """Lock the ledger, and read or create it. Raises: UserError: it is locked elsewhere, or cannot be written."""
        path = plan.directory / LEDGER
        try:
            plan.directory.mkdir(parents=True, exist_ok=True)
            lock = _lock(plan.directory)
        except OSError as error:
            raise UserError(
                f"run.root={plan.config.run.root}: {plan.directory} cannot be locked ({error.strerror})",
                "name a directory that can be written, on a file system with locks: run.root=DIRECTORY",
            ) from error
        if path.exists():
            jobs = _read_jobs(path, plan)
        else:
            jobs = [Job(number, words) for number, words in enumerate(plan.grid, 1)]
        ledger = cls(path, jobs, lock)
        ledger.save()
        return ledger

    def save(self) -> None:
        """Replace the file atomically."""
        content: dict[str, Any] = {"command": redact_words(sys.argv), "jobs": [asdict(job) for job in self.jobs]}
        write_json(self.path, content)


def _read_jobs(path: Path, plan: SweepPlan) -> list[Job]:
    """Raises: UserError: the file is damaged, or a job has words that this sweep does not vary, such as plugins."""
    advice = f"remove {path.parent}, or start beside it with another run.root"
    try:
        jobs = [Job(**job) for job in read_json(path)["jobs"]]
        varied = {override.get_key_element() for override in plan.swept}
        words = [(job.number, word, parse_overrides([word])[0]) for job in jobs for word in job.words]
        foreign = [(number, word) for number, word, override in words if override.get_key_element() not in varied]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__})", advice) from error
    if foreign:
        number, word = foreign[0]
        raise UserError(f"{path}: job {number} has the word {word}, which is not of this sweep", advice)
    return jobs


def _lock(directory: Path) -> TextIO:
    """The sweep's lock. Where only the jobs of a killed sweep hold it, wait for them."""
    path, holder = directory / LOCK_FILE, str(os.getpid())
    try:
        return lock_file(path, holder)
    except LockHeld as held:
        if held.holder and Path(f"/proc/{held.holder}").exists():
            raise UserError(f"{directory} is in use by process {held.holder}", "wait for it, or stop it") from None
        print(f"waiting for jobs that process {held.holder} has started and that still run", flush=True)
        return lock_file(path, holder, wait=True)
