"""Stops a run by signals again and again, and compares it with the run that was never stopped.

    python tests/preemptions.py 200

prints a line for each preemption, and fails on the first that breaks a promise: exit code 75, at most two more steps,
no sample lost or repeated, and in the end the same weights bit for bit.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file
from warm import WarmPopen, run_warm
from watching import WATCHED_WORDS, history, last_step, wait_until

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STEP_S = "0.02"
# Steps between a signal and the last one of the attempt: the one in progress, and the one in which ranks agree.
MAX_STEPS = 2
# Only against hanging.
ENDS_WITHIN_S = 120
STEPS_BETWEEN = 12  # on average, of two preemptions


@dataclass(frozen=True)
class Preemption:
    """One stop. more_steps: after the signal. ended_s: until the command had ended."""

    ranks: int
    target: str
    number: signal.Signals
    at_step: int
    more_steps: int
    ended_s: float

    def __str__(self) -> str:
        steps = f"step {self.at_step} and {self.more_steps} more"
        return f"{self.ranks} ranks  {self.number.name:8} to {self.target:9} {steps}, ended in {self.ended_s:.1f} s"


def words(ranks: int, steps: int) -> list[str]:
    """The command line: dropout, evaluations, and an epoch that ends often."""
    limits = [f"trainer.max_steps={steps}", "trainer.max_epochs=null", "trainer.val_check_interval=7"]
    sizes = ["data.num_points=320", "data.num_validation=640", "batch.eval_size=32"]
    cadence = ["trainer.check_val_every_n_epoch=null", f"trainer.devices={ranks}", "run.name=run"]
    return [*WATCHED_WORDS, *limits, *sizes, *cadence]


def preempt(folder: Path, ranks: int, times: int, draw: random.Random) -> Iterator[Preemption]:
    """Stop one run so many times, then let it end, and compare it with one that nobody has stopped."""
    steps = STEPS_BETWEEN * (times + 1)
    line = ["-m", "trainer", *words(ranks, steps)]
    for name in ("stopped", "whole"):
        (folder / name / "watch").mkdir(parents=True)
    watch = {"WATCH": str(folder / "stopped" / "watch"), "STEP_S": STEP_S}
    for _ in range(times):
        stop = _stop_once(line, folder / "stopped", watch, ranks, steps, draw)
        if stop is None:
            break
        yield stop
    ends = {"stopped": watch, "whole": {"WATCH": str(folder / "whole" / "watch")}}
    for name, environment in ends.items():
        done = run_warm(line, cwd=folder / name, env=environment, timeout_s=600)
        assert done.returncode == 0, done.stdout + done.stderr
    stopped, whole = (history(folder / name / "watch") for name in ends)
    assert sorted(stopped) == list(range(1, steps + 1))
    assert stopped == whole, "other samples than in the run that was never stopped"
    ours, theirs = (load_file(next(folder.glob(f"{name}/outputs/*/run/model.safetensors"))) for name in ends)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items()), "other weights"


def _stop_once(
    line: list[str], directory: Path, watch: dict[str, str], ranks: int, steps: int, draw: random.Random
) -> Preemption | None:
    """One attempt. Returns: None where the run has ended before the signal."""
    folder = Path(watch["WATCH"])
    target_step = last_step(folder) + draw.randint(1, 2 * STEPS_BETWEEN - 3)
    targets = ["parent"] if ranks == 1 else ["parent", "one rank", "all ranks"]
    number, target = draw.choice(SIGNALS), draw.choice(targets)
    with WarmPopen(line, cwd=directory, env=watch) as parent:
        wait_until(lambda: last_step(folder) >= target_step or parent.poll() is not None, 300)
        # Any moment of a step, and of the evaluation that may follow it.
        time.sleep(draw.random() * 0.1)
        if parent.poll() is not None:
            assert parent.returncode == 0 and target_step >= steps - MAX_STEPS
            return None
        children = sorted(psutil.Process(parent.pid).children(), key=lambda rank: rank.pid)
        at_step, began = last_step(folder), time.monotonic()
        for process in {"parent": [parent], "one rank": [draw.choice(children or [parent])]}.get(target, children):
            process.send_signal(number)
        stdout, stderr = parent.communicate(timeout=ENDS_WITHIN_S)
        ended_s = time.monotonic() - began
    if parent.returncode == 0 and last_step(folder) == steps:
        return None
    stop = Preemption(ranks, target, number, at_step, last_step(folder) - at_step, ended_s)
    assert parent.returncode == 75, f"{stop}: exit code {parent.returncode}\n{stdout}{stderr}"
    assert stop.more_steps <= MAX_STEPS, str(stop)
    return stop


def main(times: int) -> None:
    """Half of the preemptions on one rank, half on two, ten to a run."""
    draw = random.Random(0)
    done = 0
    began = time.monotonic()
    while done < times:
        with tempfile.TemporaryDirectory() as folder:
            for stop in preempt(Path(folder), 1 + done // 10 % 2, min(10, times - done), draw):
                done += 1
                print(f"{done:4}  {stop}", flush=True)
    print(f"{done} preemptions in {time.monotonic() - began:.0f} s: exit code 75, no sample lost, the same weights")


if __name__ == "__main__":
    main(int(sys.argv[1]))
