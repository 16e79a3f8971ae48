"""The format onnx_fp16: weights and arithmetic in half precision, arguments and outputs as in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.export import onnx_file
from trainer.export.source import Source


def write(source: Source, folder: Path) -> None:
    """Convert the graph in float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx_file.write(source, folder)
    path = str(folder / onnx_file.MODEL_FILE)
    model = onnx.load(path)
    del model.graph.value_info[:]  # their types are those of before
    onnx.save(convert_float_to_float16(model, keep_io_types=True), path)
    (folder / f"{onnx_file.MODEL_FILE}{onnx_file.DATA_SUFFIX}").unlink(missing_ok=True)


def open_network(folder: Path, gpu: int | None) -> Any:
    """See onnx_file. The CPU has few kernels in half precision and computes the rest in float32."""
    return onnx_file.open_network(folder, gpu)
