"""bench inference: a trained network eager, compiled, in half precision, and as each of its exports."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.bench.compare import compare, write_comparison
from trainer.bench.comparison import Comparison, Question
from trainer.bench.latency import Latency, print_latencies, write_latencies
from trainer.bench.rounds import Sample
from trainer.errors import EXIT_DONE, UserError
from trainer.run.opening import open_stored_run
from trainer.verbs.bench.words import number, out_of, rounds_of, take_own
from trainer.verbs.export import open_run
from trainer.verbs.stored_run import changed_config

if TYPE_CHECKING:
    from trainer.export.gate import Gate
    from trainer.export.processing import Arrays
    from trainer.verbs.bench.networks import Way

OWN = {"run": "", "batch": "1,8,32", "calls": "20", "sides": "", "rounds": "7", "out": ""}
# Of the mean magnitude of outputs: eight bits may be off by some percent, and the metric stands beside.
TOLERANCE = 0.05
WARM_UP_CALLS = 3


def inference(words: Sequence[str]) -> int:
    """`bench inference WORDS`. Returns: exit code. Raises: UserError."""
    own, others = take_own("inference", words, OWN)
    rounds, calls = rounds_of(own), number("calls", own["calls"], 1)
    sizes = [number("batch", text, 1) for text in own["batch"].split(",")]
    if not own["run"]:
        raise UserError("bench inference: needs run=DIR, as in bench inference run=outputs/bert/NAME")
    run_dir = Path(own["run"])
    open_stored_run(run_dir)
    stored = changed_config("export", run_dir, others)
    from trainer.verbs.bench.networks import ways_of

    source, gate = open_run(run_dir, stored, any(word.startswith("data.") for word in others))
    asked = [name for name in own["sides"].split(",") if name]
    ways = ways_of(source, gate, asked, _typical(gate, max(sizes)), others)
    command = f"python -m trainer bench inference {shlex.join(words)}"
    out = out_of(own, f"inference-{run_dir.name}")
    measured = {size: _measure(ways, gate, size, calls, rounds, command) for size in sizes}
    for size, (comparison, _) in measured.items():
        write_comparison(comparison, out / f"batch-{size}")
    latencies = [row for _, rows in measured.values() for row in rows]
    facts = measured[sizes[0]][0].facts
    metric = None if gate.evaluation is None else f"{gate.name}/{gate.evaluation.metric}"
    write_latencies(latencies, metric, facts, out)
    print_latencies(latencies, metric, out)
    return EXIT_DONE


def _measure(
    ways: Mapping[str, Way], gate: Gate, size: int, calls: int, rounds: int, command: str
) -> tuple[Comparison, list[Latency]]:
    """All ways on the same batch of typical inputs, and the latency of every call."""
    arrays = _typical(gate, size)
    spent_s: dict[str, list[float]] = {name: [] for name in ways}

    def side(name: str) -> Callable[[], Sample]:
        """How a way is measured."""

        def measure() -> Sample:
            """`calls` calls in a row, after some that do not count."""
            outputs = ways[name].forward(arrays)
            for _ in range(WARM_UP_CALLS - 1):
                ways[name].forward(arrays)
            times_s = []
            for _ in range(calls):
                before_s = time.perf_counter()
                outputs = ways[name].forward(arrays)
                times_s.append(time.perf_counter() - before_s)
            spent_s[name] += times_s
            return Sample(float(np.median(times_s)), {"mean magnitude": float(np.abs(outputs).mean())})

        return measure

    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    what = f"a forward pass of {size} inputs: {gate.model.config.task.name}, {gate.model.config.model.name}, {shapes}"
    checked = "the mean magnitude of the outputs; exports are proved when they are written"
    question = Question("inference", what, "forward pass", "wall time", checked, TOLERANCE)
    comparison = compare(question, {name: side(name) for name in ways}, rounds, command)
    rows = []
    for measured in comparison.sides:
        way = ways[measured.name]
        speed_up = measured.relative_time.map(lambda value: 1 / value)
        facts = way.metric, way.size_mib, way.peak_mib
        rows.append(Latency.of(measured.name, size, spent_s[measured.name], speed_up, *facts))
    return comparison, rows


def _typical(gate: Gate, size: int) -> Arrays:
    """Inputs of typical length."""
    from trainer.verbs.bench.networks import arrays_of

    inputs = gate.model.probes() if gate.evaluation is None else gate.evaluation.inputs
    start = len(inputs) // 2  # of inputs in the order of their lengths
    return arrays_of(gate, [inputs[(start + number) % len(inputs)] for number in range(size)])
