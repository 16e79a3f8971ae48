"""Runs that are killed at random moments until they are done, and what they leave beside a run never killed."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file
from warm import WarmPopen, run_warm
from watching import wait_until

from trainer.checkpoint.weights import read_state
from trainer.run.files import MODEL_FILE, RECORD_FILE
from trainer.run.metrics_file import read_metrics

MARKED = REPOSITORY / "tests" / "fixtures" / "marked" / "conf"
COMMON = [
    "--config-dir",
    str(MARKED),
    "callbacks=marked",
    "logger=none",
    "run.report=false",
    "run.name=run",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.val_check_interval=4",
    "checkpoint.every_n_steps=3",
]
TASKS = {
    "cnn": ["task=cnn", "trainer.limit_train_batches=7", "batch.eval_size=64", "trainer.limit_val_batches=2"],
    "bert": ["task=bert", "trainer.limit_train_batches=6", "model.dropout=0.2", "trainer.limit_val_batches=2"],
    "dcgan": [
        "task=dcgan",
        "trainer.limit_train_batches=6",
        "model.width=8",
        "model.latent_size=16",
        "task.num_samples=4",
        "task.num_scored=64",
        "trainer.limit_val_batches=1",
    ],
}
STRATEGIES = {"cnn": ("ddp", "fsdp2", "deepspeed_stage_2"), "dcgan": ("ddp", "deepspeed_stage_2")}
STRATEGIES["bert"] = STRATEGIES["cnn"]
MIDDLE_OF_STEP = ("data_wait", "forward", "backward", "optimizer", "logging", "step end", "other")
# Each phase and the longest time from its begin to a kill, seconds.
PHASES: Mapping[str, float] = {
    "step": 0.05,
    "checkpoint": 0.1,
    "evaluation": 0.2,
    "epoch end": 0.05,
    "start": 4.0,
    "finish": 0.5,
}
# What differs between attempts, or says how long things took.
OF_THE_ATTEMPT = ("times",)
DEADLINE_S = 600


@dataclass(frozen=True)
class Kind:
    """A run of a task. strategy: none for one rank. log_every: steps. saving: further words on how it is saved."""

    task: str
    strategy: str | None
    log_every: int
    saving: tuple[str, ...] = ()

    @property
    def num_ranks(self) -> int:
        return 1 if self.strategy is None else 2

    @property
    def words(self) -> list[str]:
        ranks = ["trainer.devices=2", f"strategy={self.strategy}"] if self.strategy else ["trainer.devices=1"]
        return [*COMMON, *TASKS[self.task], *ranks, f"trainer.log_every_n_steps={self.log_every}", *self.saving]

    @property
    def never_killed(self) -> Kind:
        """The run that it has to equal: how a run is saved changes nothing."""
        return Kind(self.task, self.strategy, self.log_every)

    def __str__(self) -> str:
        ranks = "1 rank" if self.strategy is None else f"2 ranks, {self.strategy}"
        return ", ".join([self.task, ranks, f"log every {self.log_every}", *self.saving])


@dataclass
class Reference:
    """A run never killed. counts: how often its rank 0 has entered each state."""

    run: Path
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Kill:
    """A moment: delay_s after a rank has entered a state for the count-th time, or after the attempt has started."""

    phase: str
    delay_s: float
    state: str | None = None
    rank: int = 0
    count: int = 1


@dataclass
class Killed:
    """A run that was killed. phases: of the kills that came before its end. differences: from the run never killed."""

    kind: Kind
    phases: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def never_killed(kind: Kind, folder: Path) -> Reference:
    """Do the run of a kind without a kill, in a new folder."""
    folder.mkdir(parents=True)
    counts = folder / "counts.json"
    _finish(kind, folder, {"MARK_COUNTS": str(counts)})
    return Reference(run_in(folder), json.loads(counts.read_text()))


def draw_kills(draw: random.Random, kind: Kind, reference: Reference, num_kills: int) -> list[Kill]:
    """Kills at random moments of random phases."""
    kills = []
    for _ in range(num_kills):
        phase = draw.choice(list(PHASES))
        delay_s, rank = draw.uniform(0, PHASES[phase]), draw.randrange(kind.num_ranks)
        state = {"step": draw.choice(MIDDLE_OF_STEP), "start": None}.get(phase, phase)
        kills.append(Kill(phase, delay_s, state, rank, draw.randint(1, max(1, reference.counts.get(state or "", 1)))))
    return kills


def killed_until_done(
    kind: Kind, reference: Reference, folder: Path, kills: Sequence[Kill], **environment: str
) -> Killed:
    """Start a run again and again by the same command, kill it at each of the moments, let it end, and compare it.

    Args: folder: new. environment: of each attempt.
    """
    folder.mkdir(parents=True)
    killed = Killed(kind)
    for number, kill in enumerate(kills):
        mark = folder / f"mark-{number}"
        at = f"{mark}:{kill.state}:{kill.rank}:{kill.count}" if kill.state else ""
        with WarmPopen(["-m", "trainer", *kind.words], cwd=folder, env={**environment, "MARK": at}) as parent:
            if at:
                wait_until(lambda mark=mark, parent=parent: mark.exists() or parent.poll() is not None, DEADLINE_S)
            time.sleep(kill.delay_s)
            code = parent.poll()
            kill_group(parent)
            # Once it has finished, the same command would begin another run beside it.
            if code is not None:
                assert code == 0, parent.communicate(DEADLINE_S)
                break
        killed.phases.append(kill.phase)
    if not is_finished(folder):
        _finish(kind, folder, environment)
    killed.differences = differences(run_in(folder), reference.run)
    return killed


def is_finished(folder: Path) -> bool:
    """Whether the run has recorded its end."""
    record = next(folder.glob(f"outputs/*/run/{RECORD_FILE}"), None)
    return record is not None and json.loads(record.read_text())["status"] == "finished"


def run_in(folder: Path) -> Path:
    """The directory of the run."""
    (run,) = folder.glob("outputs/*/run")
    return run


def kill_group(parent: WarmPopen) -> None:
    """SIGKILL to a process and all that it has started; returns once they are gone."""
    try:
        process = psutil.Process(parent.pid)
        group = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        group = []
    for member in group:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    parent.wait()
    psutil.wait_procs(group, timeout=DEADLINE_S)


def _finish(kind: Kind, folder: Path, environment: Mapping[str, str]) -> None:
    done = run_warm(["-m", "trainer", *kind.words], cwd=folder, env=environment, timeout_s=DEADLINE_S)
    assert done.returncode == 0, f"{kind}: {done.stdout}{done.stderr}"


def differences(run: Path, expected: Path) -> list[str]:
    """What two finished runs do not have in common: weights, whole last state, best checkpoint, metrics."""
    found = []
    if json.loads((run / RECORD_FILE).read_text())["status"] != "finished":
        found.append("status")
    found += _differing(load_file(run / MODEL_FILE), load_file(expected / MODEL_FILE), MODEL_FILE)
    for link in ("last", "best"):
        ours, theirs = (os.path.realpath(path / "checkpoints" / link) for path in (run, expected))
        if Path(ours).name != Path(theirs).name:
            found.append(f"{link}: {Path(ours).name} instead of {Path(theirs).name}")
        else:
            found += _differing(read_state(Path(ours, "state.ckpt")), read_state(Path(theirs, "state.ckpt")), link)
    if metric_lines(run) != metric_lines(expected):
        found.append("metrics.jsonl")
    return found


def metric_lines(run: Path) -> list[str]:
    """metrics.jsonl without timings."""
    return [json.dumps({n: v for n, v in line.items() if not n.startswith("perf/")}) for line in read_metrics(run)]


def _differing(ours: Any, theirs: Any, name: str) -> list[str]:
    """Names of the values that are not equal to the bit."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours.cpu(), theirs.cpu())
        return [] if same else [name]
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        names = [key for key in {**ours, **theirs} if key not in OF_THE_ATTEMPT]
        return [d for key in names for d in _differing(ours.get(key), theirs.get(key), f"{name}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for place, pair in pairs for d in _differing(*pair, f"{name}/{place}")]
    return [] if ours == theirs else [name]
