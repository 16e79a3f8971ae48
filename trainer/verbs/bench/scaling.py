"""bench scaling: T_serial / T_parallel of training, inference and data loading, measured in interleaved rounds."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from trainer.bench.compare import print_sample, surroundings
from trainer.bench.page import write_result
from trainer.bench.result import Prediction, Result, print_result
from trainer.bench.rounds import AGAIN, Sample, Samples, largest_difference, run_rounds
from trainer.bench.speedup import StepModel, ratio, speed_ups
from trainer.errors import EXIT_DONE
from trainer.run.record import Record
from trainer.verbs.bench.request import Request, busy_note, parse
from trainer.verbs.bench.samples import Workshop

# Numbers of devices that are predicted besides those measured.
PREDICTED_DEVICES = (2, 4, 8, 16, 32, 64)
# Losses of one rank and of several agree to rounding, which training amplifies.
SAME = 1e-3
HALF = "half a batch on 1"
# Of a run whose directory the ranks of a sample read.
WARM_RUN_STEPS = 12
LINK_SAMPLES = 3

Sides = dict[str, Callable[[], Sample]]


def scaling(words: Sequence[str]) -> int:
    """`bench scaling [training|inference|data] WORDS`. Returns: exit code. Raises: UserError."""
    request = parse(words)
    console = Console()
    facts = surroundings(f"python -m trainer bench scaling {shlex.join(words)}")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        ranks = max(request.devices)
        workshop = Workshop(request.prepared, request.words, request.steps, ranks, Path(folder))
        sides, model = _sides(request, workshop)
        samples = run_rounds(sides, request.rounds, partial(print_sample, console, request.rounds))
        predictions = model(samples)
    facts |= {"threads per rank": workshop.threads}
    result = _result(request, samples, predictions, facts)
    write_result(result, request.out)
    print_result(result, request.out, console)
    return EXIT_DONE


def _sides(request: Request, workshop: Workshop) -> tuple[Sides, Callable[[Samples], list[Prediction]]]:
    """What is measured in each round, by name, and what is predicted from it."""
    size = request.prepared.config.batch.global_size
    accelerator = request.accelerators[0]
    if request.kind != "training":
        run_dir, _ = workshop.train(1, accelerator, size, steps=WARM_RUN_STEPS)
        sides = {
            _strong(devices, name, request): partial(workshop.work, request.kind, run_dir, devices, name)
            for name in request.accelerators
            for devices in request.devices
        }
        return sides, lambda samples: []
    sides: Sides = {}

    def train(devices: int, name: str, global_size: int) -> Callable[[], Sample]:
        return lambda: workshop.train(devices, name, global_size)[1]

    for name in request.accelerators:
        for devices in request.devices:
            if devices == 1 or request.mode != "weak":
                sides[_strong(devices, name, request)] = train(devices, name, size)
            if devices > 1 and request.mode != "strong":
                sides[_weak(devices)] = train(devices, name, size * devices)
    if len(request.devices) == 1 or size == 1:
        return sides, lambda samples: []
    sides[HALF] = train(1, accelerator, size // 2)
    run_dir, _ = workshop.train(1, accelerator, size, steps=WARM_RUN_STEPS)
    return sides, partial(_predict, request, workshop, run_dir)


def _strong(devices: int, accelerator: str, request: Request) -> str:
    return accelerator if len(request.accelerators) > 1 else f"{devices}"


def _weak(devices: int) -> str:
    return f"{devices}, batch x{devices}"


def _predict(request: Request, workshop: Workshop, run_dir: Path, samples: Samples) -> list[Prediction]:
    """Efficiencies from one device's times, the size of the gradients and the bandwidth of the link."""
    ranks = max(request.devices)
    num_bytes = 4 * sum(Record(run_dir).read()["model"]["num_parameters"].values())
    reduces = [workshop.work("link", run_dir, ranks, request.accelerators[0]).time_s for _ in range(LINK_SAMPLES)]
    bytes_per_s = 2 * (ranks - 1) / ranks * num_bytes / median(reduces)
    size = request.prepared.config.batch.global_size
    full, half = (median(sample.time_s for sample in samples[name]) for name in ("1", HALF))
    model = StepModel.fitted((size, full), (size // 2, half), num_bytes, bytes_per_s)
    return [
        Prediction(devices, mode == "weak", model.efficiency(size, devices, mode == "weak"), num_bytes, bytes_per_s)
        for mode in ("strong", "weak")
        if request.mode in (mode, "both")
        for devices in sorted({*PREDICTED_DEVICES, *request.devices} - {1})
    ]


def _result(request: Request, samples: Samples, predictions: Sequence[Prediction], facts: Mapping[str, Any]) -> Result:
    times = {name: [sample.time_s for sample in own] for name, own in samples.items()}
    first = next(iter(samples))
    strong = [name for name in samples if name.isdecimal() or name in request.accelerators]
    difference = largest_difference(samples, strong)
    notes = [note for note in (busy_note(request.devices),) if note]
    if difference > SAME:
        notes.append(
            f"the losses of the sides differ by up to {difference:.1e}: dropout draws other masks on other ranks, and "
            "BatchNorm computes the same only with trainer.sync_batchnorm=true"
        )
    if len(request.accelerators) > 1:
        rows, weak = [], []
        gains = {name: ratio(times[first], times[name]) for name in request.accelerators}
    else:
        gains = {}
        rows = speed_ups({int(name): times[name] for name in strong})
        weak_times = {n: times[_weak(n)] for n in request.devices if _weak(n) in times}
        weak = speed_ups({1: times[first], **weak_times}, weak=True) if weak_times else []
    config = request.prepared.config
    return Result(
        request.kind,
        dict(facts),
        f"{config.task.name}, {config.model.name} on {config.data.name}",
        rows if len(rows) > 1 else [],
        weak,
        gains,
        ratio(times[first + AGAIN], times[first]),
        difference,
        list(predictions),
        notes,
        samples,
    )
