"""A model repository of NVIDIA's Triton Inference Server: the ONNX graph, with dynamic batching."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

from trainer.deploy.source import Source
from trainer.errors import UserError
from trainer.export.manifest import PROCESSING_FILE
from trainer.export.onnx_file import MODEL_FILE, read_model
from trainer.export.processing import LabelOutputs

if TYPE_CHECKING:
    import onnx

CONFIG_FILE, LABELS_FILE = "config.pbtxt", "labels.txt"
VERSION = "1"
MOST_INPUTS = 32  # in a batch
WAIT_US = 2000
MOST_QUEUED = 512
# Names of ONNX and of Triton; an export has no other types.
TYPES = {"FLOAT": "TYPE_FP32", "FLOAT16": "TYPE_FP16", "INT64": "TYPE_INT64", "INT32": "TYPE_INT32"}


def write_triton(source: Source, environment: Environment, folder: Path) -> None:
    """Write NAME/config.pbtxt and NAME/1/model.onnx, with what a client needs to prepare inputs beside them."""
    export = source.graph("triton")
    model = folder / source.name
    (model / VERSION).mkdir(parents=True)
    for file in export.manifest.files:
        is_graph = file.startswith(MODEL_FILE)
        if is_graph or file == PROCESSING_FILE or file == "tokenizer.json":
            shutil.copyfile(export.folder / file, (model / VERSION if is_graph else model) / file)
    graph = read_model(export.folder / MODEL_FILE).graph
    outputs = export.processing.outputs
    names = outputs.names if isinstance(outputs, LabelOutputs) else None
    if names is not None:
        (model / LABELS_FILE).write_text("\n".join(names) + "\n", encoding="utf-8")
    text = environment.get_template("config.pbtxt.j2").render(
        name=source.name,
        run=source.run_dir.name,
        inputs=[_tensor(value) for value in graph.input],
        outputs=[_tensor(value) for value in graph.output],
        labels=None if names is None else LABELS_FILE,
        most_inputs=MOST_INPUTS,
        wait_us=WAIT_US,
        most_queued=MOST_QUEUED,
    )
    (model / CONFIG_FILE).write_text(text, encoding="utf-8")


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, type and dimensions without that of the batch, -1 for one that varies. Raises: UserError: unknown type."""
    import onnx

    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if name not in TYPES:
        raise UserError(f"deploy=triton: {value.name} has the type {name}, which this command does not know")
    dims = [each.dim_value if each.HasField("dim_value") else -1 for each in tensor.shape.dim]
    return {"name": value.name, "type": TYPES[name], "dims": dims[1:]}
