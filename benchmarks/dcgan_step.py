"""One DCGAN step on one CPU core: the trainer's against an ordinary alternating loop.

    python -m benchmarks.dcgan_step

Both train the same networks on the same images at 64x64, batch 32. First the losses are compared: before each of 20
steps the ordinary loop copies the trainer's weights and optimizer states (otherwise rounding differences grow into
different losses within ten steps, for any two loops), then both do the step. Then they are timed in turns, each in a
process of its own on the same core. The time of a step is the process's CPU time, so data and logging count on all
sides. About 10 minutes; a dated file under benchmarks/results/.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.dcgan_plain import PlainDCGAN
from benchmarks.result_file import write_comparison_result
from trainer.bench.compare import compare
from trainer.bench.comparison import Question
from trainer.bench.turns import WARM_UP_TURNS, Turns, taking_turns
from trainer.engine.build import build_data_and_module, build_trainer
from trainer.observe.metrics import TrainingMetrics
from trainer.verbs.prepare import Options, prepare

BATCH_SIZE, IMAGE_SIZE, WIDTH = 32, 64, 64
NUM_COMPARED, TURN_STEPS, NUM_ROUNDS = 20, 2, 20
# The first side takes two turns a round; one step more is never reached.
NUM_STEPS = (2 * NUM_ROUNDS + WARM_UP_TURNS) * TURN_STEPS + 1
GOALS = {"trainer, fp32": 0.8, "trainer, bf16": 0.53}
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


class TakesTurns(pl.Callback):
    """Waits for a turn before its first step, and ends each step."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Wait."""
        self.turns.begin_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the step."""
        self.turns.end_step(None)


def ordinary(turns: Turns) -> None:
    """The process of the ordinary loop."""
    config, _, data, module = built("32-true", NUM_STEPS)
    plain = plain_of(module)
    for real, noise in batches(config, data):
        turns.begin_step()
        plain.step(real, noise)
        turns.end_step(None)


def ours(turns: Turns, precision: str) -> None:
    """The process of the trainer."""
    train(TakesTurns(turns), built(precision, NUM_STEPS))


def largest_difference() -> float:
    """Of any logged value in any of the compared steps."""
    prepared = built("32-true", NUM_COMPARED)
    comparison = Comparison(prepared)
    train(comparison, prepared)
    return comparison.largest


def main() -> int:
    """Compare, time, print and write. Returns: 0 when the goals are met."""
    difference = largest_difference()
    if difference > LARGEST_DIFFERENCE:
        print(f"the two compute different steps: a metric differs by {difference:.1e}", file=sys.stderr)
        return 1
    question = Question(
        "dcgan_step",
        f"{IMAGE_SIZE}x{IMAGE_SIZE} RGB, batch {BATCH_SIZE}, width {WIDTH}",
        "step",
        "CPU time of the process, on one core",
        f"losses and probabilities of {NUM_COMPARED} fp32 steps from the same state, which differ by {difference:.1e}",
    )
    works = {
        "ordinary": ordinary,
        "trainer, fp32": partial(ours, precision="32-true"),
        "trainer, bf16": partial(ours, precision="bf16-mixed"),
    }
    with taking_turns(works, TURN_STEPS) as sides:
        comparison = compare(question, sides, NUM_ROUNDS, "python -m benchmarks.dcgan_step")
    return write_comparison_result("dcgan-step", comparison, GOALS)


if __name__ == "__main__":
    sys.exit(main())
