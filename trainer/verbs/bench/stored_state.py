"""What `bench checkpoint` does with the checkpoint that a run has left: load it, and sum up what it holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.choose import find_checkpoint, weights_file
from trainer.checkpoint.weights import read_state


def load_last(run_dir: Path) -> tuple[float, int, dict[str, float]]:
    """Verify and read the last checkpoint of a run, as a resumed run does.

    Returns: (seconds, bytes of its files, a sum over the weights and one over the states of the optimizers).
    Raises: UserError: it is damaged.
    """
    start_s = time.perf_counter()
    checkpoint = find_checkpoint("last", run_dir)
    state = read_state(weights_file(checkpoint))
    # The file is mapped, and read where it is used.
    sums = {name: _sum(state[name]) for name in ("state_dict", "optimizer_states")}
    load_s = time.perf_counter() - start_s
    return load_s, sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()), sums


def _sum(node: Any) -> float:
    """Sum of all values, each tensor weighted by its place, so that exchanged tensors make a difference."""
    return sum(place * float(tensor.double().sum()) for place, tensor in enumerate(_tensors(node), 1))


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, torch.Tensor):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _tensors(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _tensors(value)
