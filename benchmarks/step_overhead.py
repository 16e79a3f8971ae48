"""What a training step costs beside its computation: the trainer's loop against the same loop by hand.

    python -m benchmarks.step_overhead lenet5|resnet18|minilm

Both train the same network from the same weights on the same batches, in one process on one core: the trainer with its
metrics, its clock, a progress bar and metrics.jsonl; the other loop gathers a batch, computes the loss,
its gradients and the update, and nothing else. They take turns by blocks of steps: by hand, trainer, by hand, trainer,
..., so that each of the trainer's blocks lies between two by hand and both orders occur equally often. Compared is the
CPU time of the process, with the thread that prepares batches. The ratio of the two blocks by hand around each block is
the noise. The losses of both loops are compared too. Writes a dated file under benchmarks/results/.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.result_file import surroundings, write_result
from trainer.checkpoint.callback import Checkpointing
from trainer.checkpoint.random_state import RandomState
from trainer.engine.build import build_data_and_module, build_trainer
from trainer.faults.stop import StopOnSignal
from trainer.observe.jsonl import JsonlLogger
from trainer.observe.metrics import TrainingMetrics
from trainer.observe.progress import ProgressBar
from trainer.optim.hidden import hidden_weights
from trainer.optim.optimizers import build_optimizer, build_scheduler
from trainer.verbs.prepare import Options, prepare

NUM_WARM_UP, NUM_ROUNDS = 2, 31
LARGEST_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Case:
    """words: of the command line. block_steps: steps of one turn. goal: largest ratio."""

    words: tuple[str, ...]
    block_steps: int
    goal: float


CASES = {
    "lenet5": Case(("task=cnn", "model=lenet5", "batch.global_size=32"), 40, 1.05),
    "resnet18": Case(("task=cnn", "model=resnet18", "batch.global_size=64", "trainer.log_every_n_steps=1"), 1, 1.01),
    # Dropout would give the two loops other random numbers.
    "minilm": Case(("task=bert", "model=minilm", "model.dropout=0.0", "batch.global_size=32"), 2, 1.01),
}


class ByHand:
    """The ordinary loop over a twin of the module, which it uses for its network and its preprocessing only."""

    def __init__(self, config: Any, data: Any, module: Any, total_steps: int) -> None:
        self.config, self.twin = config, copy.deepcopy(module)
        network = self.twin.model
        hidden = hidden_weights(network, self.twin.outer_layers("model"))
        self.optimizer = build_optimizer(self.twin.parameter_groups("model"), config, hidden)
        self.scheduler = build_scheduler(self.optimizer, config.scheduler, total_steps)
        self.batches = self._batches(data)
        self.losses: list[Tensor] = []

    def _batches(self, data: Any) -> Iterator[Any]:
        for epoch in range(self.config.trainer.max_epochs):
            for indices in data.train_sampler().epoch_batches(epoch):
                yield data.sets["train"].gather(indices, len(indices), epoch)

    def _loss(self, batch: Any) -> Tensor:
        if self.config.task.name == "cnn":
            return cross_entropy(self.twin.model(self.twin.transform(batch.images, batch.draws)), batch.labels)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask()}
        return cross_entropy(self.twin.model(**inputs).logits, batch.labels)

    def run(self, num_steps: int) -> float:
        """Returns: CPU seconds."""
        start_s = time.process_time()
        for _ in range(num_steps):
            loss = self._loss(next(self.batches))
            loss.backward()
            if self.config.trainer.gradient_clip_val is not None:
                nn.utils.clip_grad_norm_(self.twin.model.parameters(), self.config.trainer.gradient_clip_val)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(loss.detach())
        return time.process_time() - start_s


class Turns(pl.Callback):
    """Lets the loop by hand take its turn before the first step and after each block."""

    def __init__(self, by_hand: ByHand, block_steps: int) -> None:
        self.by_hand, self.block_steps = by_hand, block_steps
        self.by_hand_s: list[float] = []
        self.ours_s: list[float] = []
        self.losses: list[Tensor] = []
        self.since_s: float | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The first step belongs to no block: the trainer's block begins where one by hand has ended."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the time of a block."""
        self.losses.append(outputs["loss"] / batch.num_samples)
        if trainer.global_step % self.block_steps == 0:
            if self.since_s is not None:
                self.ours_s.append(time.process_time() - self.since_s)
            self.by_hand_s.append(self.by_hand.run(self.block_steps))
            self.since_s = time.process_time()


def measure(case: Case) -> Turns:
    """Train both, in turns."""
    num_blocks = NUM_WARM_UP + NUM_ROUNDS + 1
    total_steps = num_blocks * case.block_steps
    fixed = ["logger=none", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.limit_val_batches=0"]
    lengths = [f"trainer.max_steps={total_steps}", "trainer.max_epochs=1000"]
    plan = prepare([*case.words, *fixed, *lengths], Options())
    config = plan.config
    data, module = build_data_and_module(config, plan.task, plan.world)
    data.clock = module.clock
    turns = Turns(ByHand(config, data, module, total_steps), case.block_steps)
    with tempfile.TemporaryDirectory() as name, (Path(name) / "bar").open("w") as bar:
        folder = Path(name)
        metrics = TrainingMetrics(config.trainer.log_every_n_steps, config.trainer.precision, module.clock)
        stop = StopOnSignal()
        callbacks = [RandomState(), metrics, stop, ProgressBar(metrics, Console(file=bar, force_terminal=True))]
        saving = Checkpointing(config, folder, stop, module.clock)
        saving.save = lambda *_: None  # not what is measured
        trainer = build_trainer(config, plan.world, folder, [*callbacks, saving, turns], [JsonlLogger(folder)])
        trainer.fit(module, datamodule=data)
    return turns


def largest_difference(turns: Turns) -> float:
    """Of the two loops' losses in the first block by hand; the trainer has done the same steps before it."""
    pairs = zip(turns.losses[: turns.block_steps], turns.by_hand.losses, strict=False)
    return max(abs(float(ours) / float(theirs) - 1) for ours, theirs in pairs)


def report(name: str, case: Case, turns: Turns) -> tuple[str, bool]:
    """The dated file, and whether the goal is met."""
    by_hand, ours = turns.by_hand_s[NUM_WARM_UP:], turns.ours_s[NUM_WARM_UP:]
    ratios = sorted(2 * o / (a + b) for o, a, b in zip(ours, by_hand[:-1], by_hand[1:], strict=True))
    noise = sorted(after / before for before, after in itertools.pairwise(by_hand))
    ratio, difference = statistics.median(ratios), largest_difference(turns)
    met = ratio <= case.goal and difference <= LARGEST_DIFFERENCE
    tenth = len(ratios) // 10
    per_step = [1e3 * statistics.median(times) / case.block_steps for times in (by_hand, ours)]
    lines = [
        f"# A step of {name} against the same loop by hand, {datetime.date.today()}",
        "",
        f"    python -m benchmarks.step_overhead {name}",
        "",
        f"{' '.join(case.words)}; {len(ratios)} rounds of {case.block_steps} steps, {NUM_WARM_UP} more of warm-up. CPU",
        "time of the process on one core, each block of the trainer between two by hand. Largest relative difference",
        f"of a loss in the first {case.block_steps} steps: {difference:.1e}. Goal {'met' if met else 'missed'}.",
        "",
        "| by hand, ms a step | trainer, ms a step | ratio, median | nine tenths of the rounds | goal |",
        "| --- | --- | --- | --- | --- |",
        f"| {per_step[0]:.2f} | {per_step[1]:.2f} | {ratio:.3f} "
        f"| {ratios[tenth]:.3f} to {ratios[-tenth - 1]:.3f} | {case.goal} |",
        "",
        f"By hand against by hand: median {statistics.median(noise):.3f}, nine tenths of the rounds "
        f"{noise[tenth]:.3f} to {noise[-tenth - 1]:.3f}. Load average {os.getloadavg()[0]:.1f}.",
        "",
        *surroundings("one of them used; no GPU", "torch", "pytorch-lightning"),
        "",
    ]
    return "\n".join(lines), met


def main() -> int:
    """Measure one case, print and write. Returns: 0 when the goal is met."""
    if len(sys.argv) != 2 or sys.argv[1] not in CASES:
        print(f"usage: python -m benchmarks.step_overhead {'|'.join(CASES)}", file=sys.stderr)
        return 2
    name = sys.argv[1]
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    text, met = report(name, CASES[name], measure(CASES[name]))
    write_result(f"step-overhead-{name}", text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
