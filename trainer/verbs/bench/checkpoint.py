"""bench checkpoint: training that saves every so many steps, at once or beside training, against training that saves at
its end only."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.bench.compare import compare, print_comparison, write_comparison
from trainer.bench.comparison import Comparison, Question
from trainer.bench.rounds import Sample
from trainer.errors import EXIT_DONE, UserError
from trainer.run.files import RECORD_FILE
from trainer.verbs.bench.samples import Workshop
from trainer.verbs.bench.words import FEWEST_STEPS, number, out_of, rounds_of, take_own, with_fixed
from trainer.verbs.prepare import prepare, take_options

# An evaluation would be followed by a checkpoint on both sides.
FIXED = ("trainer.devices=1", "trainer.limit_val_batches=0", "monitor.patience=null", "checkpoint.at_evaluation=false")
CHECKPOINT_S = "seconds of all saves"


def checkpoint(words: Sequence[str]) -> int:
    """`bench checkpoint WORDS`. Returns: exit code. Raises: UserError."""
    own, others = take_own("checkpoint", words, {"rounds": "7", "steps": "60", "every": "5", "out": ""})
    rounds, steps = rounds_of(own), number("steps", own["steps"], FEWEST_STEPS)
    every = number("every", own["every"], 1)
    if every >= steps:
        raise UserError(f"every={every}: steps={steps}, of which the last one is saved on both sides; a smaller number")
    options, overrides = take_options(with_fixed("checkpoint", others, FIXED))
    prepared = prepare(overrides, options)
    config = prepared.config
    question = Question(
        "checkpoint",
        f"training with and without checkpoints: {config.task.name}, {config.model.name} on {config.data.name}",
        "step",
        "wall time of training, the last save included",
        "losses, and weights and optimizer states of the last checkpoint, loaded again",
        1e-6,
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        workshop = Workshop(prepared, [*options.as_words(), *overrides], steps, 1, Path(folder))
        sides = {
            "at the end": _side(workshop, "null", beside_training=False),
            f"every {every} steps": _side(workshop, str(every), beside_training=False),
            f"every {every} steps, beside training": _side(workshop, str(every), beside_training=True),
        }
        command = f"python -m trainer bench checkpoint {shlex.join(words)}"
        comparison = compare(question, sides, rounds, command)
    # Both sides save after the last step.
    comparison = replace(comparison, notes=[*comparison.notes, *_save_notes(comparison, (steps - 1) // every)])
    out = out_of(own, f"checkpoint-{config.task.name}-{config.model.name}-{config.data.name}")
    write_comparison(comparison, out)
    print_comparison(comparison, out)
    return EXIT_DONE


def _side(workshop: Workshop, every: str, beside_training: bool) -> Callable[[], Sample]:
    from trainer.verbs.bench.stored_state import load_last

    def measure() -> Sample:
        """A run that saves, and the time to load its last checkpoint."""
        size, accelerator = workshop.prepared.config.batch.global_size, workshop.prepared.world.accelerator
        more = ["trainer.limit_val_batches=0", f"checkpoint.every_n_steps={every}"]
        more += [f"checkpoint.asynchronous={str(beside_training).lower()}"]
        run_dir, sample = workshop.train(1, accelerator, size, more=more)
        spent = json.loads((run_dir / RECORD_FILE).read_text(encoding="utf-8"))["time"]
        load_s, num_bytes, sums = load_last(run_dir)
        figures = {
            CHECKPOINT_S: spent["training_s"] * spent["shares"]["checkpoint"],
            "ms of a load": 1000 * load_s,
            "MiB of a checkpoint": num_bytes / 2**20,
        }
        return Sample(spent["training_s"] / workshop.steps, {**sample.computed, **sums}, {}, figures)

    return measure


def _save_notes(comparison: Comparison, saves: int) -> list[str]:
    never, *often = (side.figures[CHECKPOINT_S] for side in comparison.sides)
    names = [side.name for side in comparison.sides[1:]]
    return [
        f"{name}: a save holds the steps for {1000 * (spent - never) / saves:.0f} ms: {saves} more of them took "
        f"{spent - never:.2f} s"
        for name, spent in zip(names, often, strict=True)
    ]
