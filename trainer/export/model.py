"""An exported model, loaded: raw inputs to results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from trainer.errors import UserError
from trainer.export.formats import FORMATS, require_packages
from trainer.export.manifest import PROCESSING_FILE, Manifest, read_manifest
from trainer.export.processing import Arrays, PlainProcessing

# Arguments by name -> outputs float32; axis 0 is the input.
Network = Callable[[Arrays], np.ndarray]
BATCH_SIZE = 32


@dataclass(frozen=True)
class ExportedNetwork:
    """A network with what surrounds it: `model(inputs)` gives results, `model.outputs(inputs)` the array before them.

    Inputs and results are those of `trainer.load` on the run.
    """

    processing: PlainProcessing
    forward: Network

    def __call__(self, inputs: Any, batch_size: int = BATCH_SIZE) -> list[dict[str, Any]]:
        """One JSON-ready result for each raw input. Raises: UserError: an input cannot be used."""
        values = self.processing.inputs.listed(inputs)
        starts = range(0, len(values), batch_size)
        return [
            result
            for start in starts
            for result in self.postprocess(self.forward(self.preprocess(values[start : start + batch_size])))
        ]

    def outputs(self, inputs: Any, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """The network's outputs, such as logits (N, C) float32. Raises: UserError: as __call__, or no inputs."""
        values = self.processing.inputs.listed(inputs)
        if not values:
            raise UserError("inputs: there are none")
        starts = range(0, len(values), batch_size)
        return np.concatenate([self.forward(self.preprocess(values[at : at + batch_size])) for at in starts])

    def preprocess(self, inputs: Sequence[Any]) -> Arrays:
        """Raw inputs as the network's arguments. Raises: UserError: an input cannot be used."""
        return self.processing.inputs.arrays(inputs)

    def postprocess(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """One JSON-ready result for each row of the network's output."""
        return self.processing.outputs.results(outputs)


@dataclass(frozen=True)
class ExportedModel(ExportedNetwork):
    """An export that was proved and whose files are unchanged. manifest: see there."""

    manifest: Manifest


def load(path: str | Path, allow_native_code: bool = False, gpu: int | None = None) -> ExportedModel:
    """An export, without Lightning; without torch where its format is of ONNX. Nothing in it is executed as code.

    Args: path: the folder of one format, such as RUN/export/onnx. allow_native_code: of aot_inductor, which is machine
        code and can do whatever this process can. gpu: the number of the one that computes; without it the CPU does,
        and for tensorrt the first GPU.
    Raises: UserError: no export, a file that is damaged, changed or outside of the folder, or a missing package.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if FORMATS[manifest.format].is_native:
        _check_native(folder, manifest, allow_native_code)
    network = open_export(folder, manifest.format, gpu)
    return ExportedModel(network.processing, network.forward, manifest)


def _check_native(folder: Path, manifest: Manifest, is_allowed: bool) -> None:
    """Raises: UserError: machine code is not allowed, or it is not for this processor."""
    if not is_allowed:
        raise UserError(f"{folder}: {manifest.format} is machine code", "if you trust it, pass allow_native_code=True")
    from trainer.export.compiled import instruction_set

    if manifest.bound_to != instruction_set():
        reason = f"was compiled for {manifest.bound_to}, this processor has {instruction_set()}"
        raise UserError(f"{folder}: {reason}; export the run here")


def open_export(folder: Path, format_name: str, gpu: int | None = None) -> ExportedNetwork:
    """What a folder holds, before it has a manifest. Raises: UserError: as `load`."""
    if gpu is not None and FORMATS[format_name].gpu_runtime is None:
        raise UserError(f"{folder}: the format {format_name} computes on the CPU, not on GPU {gpu}")
    require_packages(format_name)
    file = folder / PROCESSING_FILE
    try:
        processing = PlainProcessing.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read") from error
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise UserError(f"{file}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from error
    processing.inputs.open(folder)
    network: Network = import_module(f"trainer.export.{FORMATS[format_name].module}").open_network(folder, gpu)
    return ExportedNetwork(processing, network)
