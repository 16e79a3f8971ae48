"""The format tensorrt: the graph in float32, which onnxruntime's TensorRT provider compiles when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.export import onnx_file
from trainer.export.devices import providers_for
from trainer.export.source import Source

PROVIDER = "TensorrtExecutionProvider"


def write(source: Source, folder: Path) -> None:
    """Write model.onnx. Raises: UserError: no GPU, or no TensorRT."""
    _require()
    # Tensors whose size depends on values, as those without padding, keep TensorRT from planning memory and kernels.
    onnx_file.write_graph(source.model.network, source.model.example_inputs(), folder)


def open_network(folder: Path, gpu: int | None) -> Any:
    """See onnx_file; the first GPU where none is chosen. Raises: UserError: no GPU, or no TensorRT."""
    _require()
    number = gpu or 0
    return onnx_file.open_session(folder, [(PROVIDER, {"device_id": number}), *providers_for(number)])


def _require() -> None:
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        raise UserError("format=tensorrt: needs an NVIDIA GPU, and this machine has none")
    if PROVIDER not in onnxruntime.get_available_providers():
        advice = "install onnxruntime-gpu in place of onnxruntime, and tensorrt"
        raise UserError(f"format=tensorrt: this onnxruntime has no {PROVIDER}", advice)
