"""The benchmarks whose sides are training runs with different words: ddp, strategies, precision, compile."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.bench.compare import compare, print_comparison, write_comparison
from trainer.bench.comparison import Question
from trainer.bench.rounds import Sample
from trainer.errors import EXIT_DONE, UserError
from trainer.verbs.bench.request import DEVICES, busy_note
from trainer.verbs.bench.samples import WARM_UP_WINDOWS, WINDOWS, Workshop
from trainer.verbs.bench.words import FEWEST_STEPS, number, out_of, rounds_of, take_own, with_fixed
from trainer.verbs.prepare import prepare, take_options

# So small that no weight changes: every step of every side starts from the same weights, at the cost of any step.
STILL = "optimizer.lr=1e-12"
UNREDUCED = "callbacks.unreduced._target_=trainer.verbs.bench.unreduced.Unreduced"
LOSSES = "losses of the same steps, by the largest relative difference"


@dataclass(frozen=True)
class Runs:
    """A benchmark of training runs.

    key: whose values, which the user may change, are the sides; empty where `sides` are fixed. devices: of each run.
    fixed: words of all runs. tolerance: see Question.
    """

    what: str
    key: str
    sides: Mapping[str, Sequence[str]]
    devices: int
    tolerance: float
    fixed: Sequence[str] = ()


def ddp(words: Sequence[str]) -> int:
    """`bench ddp WORDS`. Returns: exit code. Raises: UserError."""
    sides = {"gradients not reduced": [UNREDUCED], "ddp": []}
    what = "a step of several ranks with and without the all-reduce of gradients"
    return _bench("ddp", Runs(what, "", sides, 2, 1e-4, ["strategy=ddp", STILL]), words)


def strategies(words: Sequence[str]) -> int:
    """`bench strategies WORDS`. Returns: exit code. Raises: UserError."""
    values = ["ddp", "fsdp2", *(f"deepspeed_stage_{stage}" for stage in (1, 2, 3))]
    return _bench("strategies", _values("a step under each strategy", "strategy", values, 2, 1e-3), words)


def precision(words: Sequence[str]) -> int:
    """`bench precision WORDS`. Returns: exit code. Raises: UserError."""
    values = ["32-true", "bf16-mixed"]
    # A bfloat16 has 8 significant bits.
    return _bench("precision", _values("a step in each precision", "trainer.precision", values, 1, 0.05), words)


def compile(words: Sequence[str]) -> int:
    """`bench compile WORDS`. Returns: exit code. Raises: UserError."""
    sides = {"eager": ["performance.compile=false"], "compiled": ["performance.compile=true"]}
    return _bench("compile", Runs("a step with and without torch.compile", "", sides, 1, 1e-3), words)


def _values(what: str, key: str, values: Sequence[str], devices: int, tolerance: float) -> Runs:
    return Runs(what, key, {value: [f"{key}={value}"] for value in values}, devices, tolerance)


def _bench(name: str, runs: Runs, words: Sequence[str]) -> int:
    own = {"rounds": "7", "steps": "60", "out": "", DEVICES: str(runs.devices)}
    own |= {runs.key: ",".join(runs.sides)} if runs.key else {}
    chosen, others = take_own(name, words, own)
    sides = runs.sides
    if runs.key:
        values = dict.fromkeys(chosen[runs.key].split(","))
        if len(values) < 2:
            raise UserError(
                f"{runs.key}={chosen[runs.key]}: a ratio needs two sides, as in {runs.key}={','.join(runs.sides)}"
            )
        sides = {value: [f"{runs.key}={value}"] for value in values}
    options, overrides = take_options(with_fixed(name, others, runs.fixed))
    devices = number(DEVICES, chosen[DEVICES], 2 if runs.devices > 1 else 1)
    # All of them, so that a wrong word is refused before anything is measured.
    prepared = [prepare([*overrides, *more, f"{DEVICES}={devices}"], options) for more in sides.values()]
    config, rounds = prepared[0].config, rounds_of(chosen)
    steps = number("steps", chosen["steps"], FEWEST_STEPS)
    subject = f"{config.task.name}, {config.model.name} on {config.data.name}"
    where = f"{config.task.name}-{config.model.name}-{config.data.name}"
    out = out_of(chosen, f"{name}-{where}")
    counted = f"steps {steps // WINDOWS * WARM_UP_WINDOWS + 1} to {steps} of each run count"
    question = Question(name, f"{runs.what}: {subject}", "step", f"wall time; {counted}", LOSSES, runs.tolerance)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        workshop = Workshop(prepared[0], [*options.as_words(), *overrides], steps, devices, Path(folder))

        def train(more: Sequence[str]) -> Callable[[], Sample]:
            size, accelerator = config.batch.global_size, prepared[0].world.accelerator
            return lambda: workshop.train(devices, accelerator, size, more=more)[1]

        notes = [note for note in (busy_note([devices]),) if note]
        command = f"python -m trainer bench {name} {shlex.join(words)}"
        comparison = compare(question, {side: train(more) for side, more in sides.items()}, rounds, command, notes)
    write_comparison(comparison, out)
    print_comparison(comparison, out)
    return EXIT_DONE
