"""How one sample of a scaling study is measured: each in new processes, started as a user starts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean, median
from typing import Any

from trainer.bench.process import run_process
from trainer.bench.rounds import Sample
from trainer.errors import EXIT_DONE, EXIT_USER, UserError
from trainer.launch.agent import start_ranks
from trainer.run.metrics_file import read_metrics
from trainer.run.stored_config import plugins_word
from trainer.verbs.bench.request import ACCELERATOR, DEVICES, Kind
from trainer.verbs.prepare import PreparedRun
from trainer.world import World

WINDOWS = 6
# The first windows of a run are slower: memory is allocated, kernels are chosen.
WARM_UP_WINDOWS = 2
SHARE, TIME, MEMORY = "perf/share_", "perf/step_time_s", "perf/peak_memory_gib"
BETWEEN_STEPS = ("evaluation", "checkpoint")


class Workshop:
    """Measures samples of a configuration in a temporary folder.

    prepared: on one device. words: of the configuration, without devices. steps: of a training run. threads: of each
    rank.
    """

    def __init__(self, prepared: PreparedRun, words: Sequence[str], steps: int, ranks: int, folder: Path) -> None:
        self.prepared, self.words, self.steps, self.folder = prepared, words, steps, folder
        self.threads = max(1, (os.cpu_count() or 1) // ranks)
        self.numbers = count(1)
        self.passes: dict[str, int] = {}

    def train(
        self, devices: int, accelerator: str, global_size: int, steps: int | None = None, more: Sequence[str] = ()
    ) -> tuple[Path, Sample]:
        """A training run. Returns: its directory, and the median time of a step after the warm-up.

        Args: more: words of this run alone. Raises: UserError: the run could not be made.
        """
        steps = steps or self.steps
        name = f"sample-{next(self.numbers)}"
        words = [
            "fit", *self.words, f"{DEVICES}={devices}", f"{ACCELERATOR}={accelerator}",
            f"batch.global_size={global_size}", f"trainer.max_steps={steps}", "trainer.max_epochs=null",
            f"trainer.log_every_n_steps={max(1, steps // WINDOWS)}", "trainer.limit_val_batches=1",
            "trainer.limit_test_batches=0", "trainer.enable_progress_bar=false", "logger=none",
            f"run.root={self.folder}", f"run.name={name}", *more,
        ]  # fmt: skip
        done = run_process([sys.executable, "-m", "trainer", *words], {"OMP_NUM_THREADS": str(self.threads)})
        if done.code == EXIT_USER:
            raise UserError(*done.stderr.strip().splitlines()[-3:])
        if done.code != EXIT_DONE:
            raise RuntimeError(f"{' '.join(words)} ended with {done.code}\n{done.stdout}{done.stderr}")
        run_dir = self.folder / self.prepared.config.task.name / name
        return run_dir, training_sample(read_metrics(run_dir), done.peak_gib)

    def work(self, kind: Kind | str, run_dir: Path, devices: int, accelerator: str) -> Sample:
        """A pass of loading or inference on ranks of their own; the first one decides how many passes a sample takes.

        Raises: UserError, RankFailure: as a run's ranks do.
        """
        prepared = self.prepared
        words = [f"kind={kind}", f"passes={self.passes.get(kind, 0)}"]
        words += [f"{DEVICES}={devices}", f"{ACCELERATOR}={accelerator}"]
        words += [*plugins_word(prepared.config.plugins), *prepared.own_words]
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        on_gpus = "cuda" if accelerator == "cuda" else "cpu"
        world = World("elastic", on_gpus, devices, devices, 1)
        result = start_ranks(world, prepared.config.launch, "bench", run_dir, words)
        self.passes.setdefault(kind, int(result["passes"]))
        return Sample(result["time_s"], result["computed"], {})


def training_sample(lines: Sequence[Mapping[str, Any]], process_gib: float = 0.0) -> Sample:
    """A sample from the lines of metrics.jsonl: losses by step, and seconds of a step in each state of the clock.

    Args: process_gib: most memory of one process of the run, for the devices whose own memory is not logged.
    """
    timed = [line for line in lines if TIME in line]
    logged = timed[WARM_UP_WINDOWS:]
    losses = {
        f"{key} step {line['step']}": line[key] for line in logged for key in line if key.startswith("train/loss")
    }
    time_s = median(line[TIME] for line in logged)
    states = [key.removeprefix(SHARE) for key in logged[0] if key.startswith(SHARE)]
    of_steps = [state for state in states if state not in BETWEEN_STEPS]
    shares = {state: fmean(line[SHARE + state] for line in logged) for state in of_steps}
    total = sum(shares.values()) or 1.0
    details = {state: time_s * share / total for state, share in shares.items()}
    ranks = [key for key in logged[0] if key.startswith("perf/step_time_s_rank_")]
    if ranks:
        own = [fmean(line[key] for line in logged) for key in ranks]
        # What the mean rank waits for the slowest one; the clock counts it as communication.
        waiting = min(max(own) - fmean(own), details["communication"])
        details |= {"imbalance": waiting, "communication": details["communication"] - waiting}
    memory_gib = max((line[MEMORY] for line in logged if MEMORY in line), default=process_gib)
    # Windows have equally many steps.
    warm_up_s = timed[0]["step"] * sum(line[TIME] for line in timed[:WARM_UP_WINDOWS])
    figures = {"warm-up, s": warm_up_s, "peak memory of a rank, GiB": memory_gib}
    return Sample(time_s, losses, details, figures)
