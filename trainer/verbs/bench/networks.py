"""The sides of `bench inference`: one trained network, run in several ways."""

from __future__ import annotations

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainer.bench.process import run_process
from trainer.data.cache import use_private_compiler_cache
from trainer.errors import UserError, nearest
from trainer.export import load
from trainer.export.gate import Gate
from trainer.export.model import Network
from trainer.export.processing import Arrays
from trainer.export.source import Source
from trainer.run.files import EXPORT_DIR, MANIFEST_FILE, MODEL_FILE

EAGER, COMPILE, BF16 = "eager", "compile", "bf16"
NATIVE = "aot_inductor"
# Machine code is run only where it was asked for by name; the weights alone are run as eager.
NOT_BY_DEFAULT = (NATIVE, "safetensors")


@dataclass(frozen=True)
class Way:
    """A way to run the network.

    size_mib: of the files it needs. metric: on the evaluation data, None without it. peak_mib: resident memory of a
    process that does nothing else.
    """

    forward: Network
    size_mib: float
    metric: float | None
    peak_mib: float


def ways_of(source: Source, gate: Gate, asked: Sequence[str], largest: Arrays, words: Sequence[str]) -> dict[str, Way]:
    """Ways by name, eager first.

    Args: asked: names; where there are none, all but NOT_BY_DEFAULT. largest: the batch that memory is measured with.
        words: of the run's configuration.
    Raises: UserError: one that was asked for is not there.
    """
    place = source.run_dir / EXPORT_DIR
    exports = [path.parent.name for path in sorted(place.glob(f"*/{MANIFEST_FILE}")) if path.parent.name[0] != "."]
    built = builders(source.model.network)
    possible = [*built, *exports]
    for name in asked:
        if name not in possible:
            raise UserError(
                f"sides={name}: not there; {nearest(name, possible)}", "python -m trainer export run=DIR format=NAME"
            )
    chosen = asked or [name for name in possible if name not in NOT_BY_DEFAULT]
    names = [EAGER, *(name for name in chosen if name != EAGER)]
    weights_mib = (source.run_dir / MODEL_FILE).stat().st_size / 2**20
    ways = {}
    for name in names:
        forward, size_mib = (built[name](), weights_mib) if name in built else _exported(place / name)
        peak_mib = _peak_mib(source.run_dir, name, largest, words)
        ways[name] = Way(forward, size_mib, _metric(gate, forward), peak_mib)
    return ways


def builders(network: nn.Module) -> dict[str, Callable[[], Network]]:
    """Ways to run a network that need no export."""
    found: dict[str, Callable[[], Network]] = {EAGER: lambda: _torch(network)}
    if shutil.which(os.environ.get("CXX", "g++")) is not None:
        use_private_compiler_cache()
        found[COMPILE] = lambda: _torch(torch.compile(network, dynamic=True))  # pyright: ignore[reportArgumentType]
    return {**found, BF16: lambda: _torch(copy.deepcopy(network).to(torch.bfloat16), torch.bfloat16)}


def _torch(network: nn.Module, dtype: torch.dtype = torch.float32) -> Network:
    """A network as a function of arrays, with its fractions in `dtype`."""

    def as_tensor(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    @torch.inference_mode()
    def forward(arrays: Arrays) -> np.ndarray:
        return network(**{name: as_tensor(array) for name, array in arrays.items()}).float().numpy()

    return forward


def _exported(folder: Path) -> tuple[Network, float]:
    """An export, and the size of its files in MiB."""
    export = load(folder, allow_native_code=folder.name == NATIVE)
    return export.forward, sum(file.size for file in export.manifest.files.values()) / 2**20


def _metric(gate: Gate, forward: Network) -> float | None:
    """Computed here for all ways alike; this also warms the network up."""
    if gate.evaluation is None:
        return None
    outputs = [forward(arrays_of(gate, batch)) for batch in gate.batches[len(gate.probes) :]]
    return gate.evaluation.score(torch.from_numpy(np.concatenate(outputs)))


def _peak_mib(run_dir: Path, name: str, arrays: Arrays, words: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "arguments.npz"
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] - its stubs take the arrays for allow_pickle
        command = [sys.executable, "-m", "trainer.verbs.bench.one_way", str(run_dir), name, str(file), *words]
        done = run_process(command, {})
    if done.code:
        raise UserError(f"sides={name}: fails in a process of its own", *done.stderr.splitlines()[-1:])
    return float(done.stdout)


def arrays_of(gate: Gate, inputs: Sequence[object]) -> Arrays:
    """Raw inputs as the network's arguments."""
    return {name: tensor.numpy() for name, tensor in gate.model.preprocess(inputs).items()}
