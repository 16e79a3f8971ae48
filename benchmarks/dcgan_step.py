"""One DCGAN step on one CPU core: the trainer's against an ordinary alternating loop.

    python -m benchmarks.dcgan_step

Both train the same networks on the same images at 64x64, batch 32. First the losses are compared: before each of 20
steps the ordinary loop copies the trainer's weights and optimizer states (otherwise rounding differences grow into
different losses within ten steps, for any two loops), then both do the step. Then they are timed: the ordinary loop,
the trainer in fp32, the trainer in bf16 and the ordinary loop again, one process each, all on one core, one step at a
time while the others wait. The time of a step is the process's CPU time from the end of the previous step to the end
of this one, so data and logging count on both sides. The difference between the two ordinary loops is the noise of
the ratios. Writes a dated file under benchmarks/results/.
"""

from __future__ import annotations

import copy
import datetime
import multiprocessing as mp
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.dcgan_plain import PlainDCGAN
from benchmarks.result_file import surroundings, write_result
from trainer.engine.build import build_data_and_module, build_trainer
from trainer.observe.metrics import TrainingMetrics
from trainer.verbs.prepare import Options, prepare

BATCH_SIZE, IMAGE_SIZE, WIDTH = 32, 64, 64
NUM_COMPARED, NUM_WARM_UP, NUM_TIMED = 20, 4, 40
NUM_TURNS = NUM_WARM_UP + NUM_TIMED
GOALS = {"trainer, fp32": 1.25, "trainer, bf16": 1.9}
LARGEST_DIFFERENCE = 1e-4
WORDS = [
    "task=dcgan",
    "logger=none",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    f"data.image_size={IMAGE_SIZE}",
    "data.channels=3",
    f"model.width={WIDTH}",
    f"batch.global_size={BATCH_SIZE}",
    "task.ema_decay=null",
    "task.sample_every_n_steps=1000000",
    "trainer.limit_val_batches=0",
    "trainer.max_epochs=100",
]


def built(precision: str, num_steps: int) -> Any:
    """(configuration, world, data, module) of the trainer's run."""
    torch.set_num_threads(1)
    plan = prepare([*WORDS, f"trainer.precision={precision}", f"trainer.max_steps={num_steps}"], Options())
    data, module = build_data_and_module(plan.config, plan.task, plan.world)
    return plan.config, plan.world, data, module


def train(callback: pl.Callback, prepared: Any) -> None:
    """Run the trainer's steps with a callback around each."""
    config, world, data, module = prepared
    metrics = TrainingMetrics(config.trainer.log_every_n_steps, config.trainer.precision, module.clock)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, world, Path(folder), [metrics, callback], [])
        trainer.fit(module, datamodule=data)


def plain_of(module: Any) -> PlainDCGAN:
    """The ordinary loop from the same weights, in the ordinary memory order."""
    networks = {
        name: copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        for name, network in module.networks().items()
    }

    def param_groups(name: str) -> list[dict[str, Any]]:
        parameters = list(networks[name].parameters())
        return [{"params": [p for p in parameters if p.ndim > 1]}, {"params": [p for p in parameters if p.ndim < 2]}]

    return PlainDCGAN(networks["discriminator"], networks["generator"], param_groups)


def batches(config: Any, data: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the trainer's steps see: images in [-1, 1] and noise."""
    for epoch in range(config.trainer.max_epochs):
        for indices in data.train_sampler().epoch_batches(epoch):
            batch = data.sets["train"].gather(indices, len(indices), epoch)
            yield batch.images[0].float() / 127.5 - 1, batch.noise[0]


class Comparison(pl.Callback):
    """Does every step also in the ordinary way, from the same state, and keeps the largest difference of a metric."""

    def __init__(self, prepared: Any) -> None:
        config, _, data, module = prepared
        self.plain, self.batches = plain_of(module), batches(config, data)
        self.expected: dict[str, float] = {}
        self.largest = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The ordinary step, from the trainer's weights and optimizer states."""
        self.plain.discriminator.load_state_dict(pl_module.discriminator.state_dict())
        self.plain.generator.load_state_dict(pl_module.generator.state_dict())
        for ours, theirs in zip(pl_module.optimizers(), (self.plain.optimizer_d, self.plain.optimizer_g), strict=True):
            state = copy.deepcopy(ours.optimizer.state_dict())
            # Only the state: the groups say that ours is fused.
            theirs.load_state_dict({"state": state["state"], "param_groups": theirs.state_dict()["param_groups"]})
        self.expected = self.plain.step(*next(self.batches))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Compare."""
        for name, value in self.expected.items():
            self.largest = max(self.largest, abs(outputs[name].item() / BATCH_SIZE - value))


class Turns(pl.Callback):
    """Waits for its turn before a step, and reports the CPU time since the previous one after it."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.spent_s = pipe, time.process_time()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Wait."""
        self.pipe.recv()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report the CPU time."""
        before, self.spent_s = self.spent_s, time.process_time()
        self.pipe.send(self.spent_s - before)


def ordinary(pipe: Connection, core: int) -> None:
    """The process of an ordinary loop."""
    os.sched_setaffinity(0, {core})
    config, _, data, module = built("32-true", NUM_TURNS)
    plain, turns = plain_of(module), Turns(pipe)
    for number, (real, noise) in enumerate(batches(config, data)):
        if number == NUM_TURNS:
            return
        turns.on_train_batch_start(None, None, None, number)
        plain.step(real, noise)
        turns.on_train_batch_end(None, None, None, None, number)


def ours(pipe: Connection, core: int, precision: str) -> None:
    """The process of the trainer."""
    os.sched_setaffinity(0, {core})
    train(Turns(pipe), built(precision, NUM_TURNS))


def timed() -> dict[str, list[float]]:
    """CPU seconds of each step by contestant, in the order in which they took turns."""
    core = max(os.sched_getaffinity(0))
    context = mp.get_context("spawn")
    contestants = {
        "ordinary": (ordinary, ()),
        "trainer, fp32": (ours, ("32-true",)),
        "trainer, bf16": (ours, ("bf16-mixed",)),
        "ordinary, again": (ordinary, ()),
    }
    pipes, processes = {}, []
    for name, (work, arguments) in contestants.items():
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(theirs, core, *arguments)))
        processes[-1].start()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(NUM_TURNS):
        for name, pipe in pipes.items():
            pipe.send("go")
            spent_s = pipe.recv()
            if number >= NUM_WARM_UP:
                times[name].append(spent_s)
    for process in processes:
        process.join()
    return times


def largest_difference() -> float:
    """Of any logged value in any of the compared steps."""
    prepared = built("32-true", NUM_COMPARED)
    comparison = Comparison(prepared)
    train(comparison, prepared)
    return comparison.largest


def ratios(times: dict[str, list[float]], name: str) -> list[float]:
    """Of the ordinary loops' mean to a contestant, turn by turn."""
    both = zip(times["ordinary"], times["ordinary, again"], times[name], strict=True)
    return [(one + again) / 2 / other for one, again, other in both]


def report(times: dict[str, list[float]], difference: float) -> tuple[str, bool]:
    """The dated file, and whether every goal is met."""
    met = difference <= LARGEST_DIFFERENCE
    rows = []
    for name, values in times.items():
        ratio = statistics.median(ratios(times, name))
        goal = GOALS.get(name)
        met = met and (goal is None or ratio >= goal)
        rows.append(f"| {name} | {1e3 * statistics.median(values):.0f} | {ratio:.2f} | {goal or ''} |")
    same = sorted(a / b for a, b in zip(times["ordinary"], times["ordinary, again"], strict=True))
    tenth = len(same) // 10
    lines = [
        f"# DCGAN step on one CPU core, {datetime.date.today()}",
        "",
        "    python -m benchmarks.dcgan_step",
        "",
        f"{IMAGE_SIZE}x{IMAGE_SIZE} RGB, batch {BATCH_SIZE}, width {WIDTH}; {NUM_TIMED} turns, {NUM_WARM_UP} more",
        "of warm-up, each side in its own process on the same core, one step at a time. CPU time of the",
        f"process. Largest difference of any loss or probability over {NUM_COMPARED} steps in fp32, each from the same",
        f"state: {difference:.1e}. Goals {'met' if met else 'missed'}.",
        "",
        "| contestant | ms a step, median | ordinary / this, median | goal |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"Ordinary against ordinary, nine tenths of the turns: {same[tenth]:.2f} to {same[-tenth - 1]:.2f}.",
        "",
        "What makes the difference: the discriminator's weights are frozen in the generator's step; one convolution",
        "of real and generated images, BatchNorm on each separately; channels_last; fused Adam; freed memory stays in",
        "the process; nothing waits for values to log.",
        "",
        *surroundings("one of them used; no GPU", "torch", "pytorch-lightning"),
        "",
    ]
    return "\n".join(lines), met


def main() -> int:
    """Compare, time, print and write. Returns: 0 when the goals are met."""
    text, met = report(timed(), largest_difference())
    write_result("dcgan-step", text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
