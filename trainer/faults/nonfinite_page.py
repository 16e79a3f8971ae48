"""The page about a step whose loss or gradient is not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.batch import StepBatch
from trainer.data.module import DataModule
from trainer.run.files import FAULTS_DIR, write_text

MAX_SAMPLES = 64  # of a micro-batch, with a line for each where they can be said in words


@dataclass(frozen=True)
class NonFiniteStep:
    """A step: its number, counted from 1, and this rank's share of it."""

    number: int
    batch: StepBatch[Any]
    batch_idx: int


def write_page(run_dir: Path, step: int, what: str, ranks: list[dict[str, Any]], data: DataModule) -> list[str]:
    """Write the page of a step.

    Args: what: is wrong, of which network. ranks: by rank, `weight` and the records of Finding as `micro_batches`.
    Returns: its first two lines: where it is not finite, and the page.
    """
    first = f"step {step}: {what}; {_cause(ranks)}"
    path = run_dir / FAULTS_DIR / f"nonfinite-step-{step:08d}.txt"
    lines = [first, "The update was not applied. Each rank has computed its share again:"]
    for rank, found in enumerate(ranks):
        lines += ["", f"rank {rank}"]
        lines += [f"  weight {found['weight']} is not finite"] if found["weight"] else []
        for number, micro in enumerate(found["micro_batches"]):
            lines += [f"  {line}" for line in _micro_lines(number, micro, data)]
    path.parent.mkdir(exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")
    return [first, f"samples of each rank: {path}"]


def _cause(ranks: list[dict[str, Any]]) -> str:
    """The first cause in words: a weight, an input, a tensor of the forward pass, or a gradient."""
    for rank, found in enumerate(ranks):
        if found["weight"]:
            return f"on rank {rank} the weight {found['weight']} was not finite before it"
    bad = [(rank, micro) for rank, found in enumerate(ranks) for micro in found["micro_batches"] if micro["is_bad"]]
    if not bad:
        return f"computed again, every rank's share is finite{_largest(ranks)}"
    rank, micro = max(bad, key=lambda item: len(item[1]["inputs"]) > 0)
    in_backward = micro["gradient"] if all(map(math.isfinite, micro["losses"])) else None
    begins = micro["tensor"] or (f"gradient of {in_backward}" if in_backward else "the loss")
    inputs, samples = micro["inputs"], micro["samples"]
    which = f"inputs of {_listed(inputs)}" if inputs else f"in a micro-batch of {len(samples)}, {_listed(samples)}"
    return f"rank {rank}, {which}: begins at {begins}"


def _largest(ranks: list[dict[str, Any]]) -> str:
    """The micro-batch with the largest loss, where there are several."""
    found = [
        (max(micro["losses"]), r, micro) for r, f in enumerate(ranks) for micro in f["micro_batches"] if micro["losses"]
    ]
    if len(found) < 2:
        return ""
    loss, rank, micro = max(found, key=lambda each: each[0])
    return f", the largest loss {loss:.4g} on rank {rank}, {_listed(micro['samples'])}"


def _listed(samples: list[int], most: int = 8) -> str:
    noun = "sample" if len(samples) == 1 else "samples"
    return f"{noun} {', '.join(map(str, samples[:most]))}{', ...' if len(samples) > most else ''}"


def _micro_lines(number: int, micro: dict[str, Any], data: DataModule) -> list[str]:
    losses = ", ".join(f"{loss:.6g}" for loss in micro["losses"])
    lines = [f"micro-batch {number}: {'not finite' if micro['is_bad'] else 'finite'}, loss {losses}"]
    lines += [f"  first tensor that is not finite: {micro['tensor']}"] if micro["tensor"] else []
    lines += [f"  gradient that is not finite, nearest to the loss: {micro['gradient']}"] if micro["gradient"] else []
    lines += [f"  inputs that are not finite: {_listed(micro['inputs'], MAX_SAMPLES)}"] if micro["inputs"] else []
    lines += [f"  {_listed(micro['samples'], MAX_SAMPLES)}"] if micro["samples"] else []
    if micro["is_bad"]:
        shown = (micro["inputs"] or micro["samples"])[:MAX_SAMPLES]
        lines += [f"    {i}: {text}" for i, text in zip(shown, data.describe_samples(shown), strict=False)]
    return lines
