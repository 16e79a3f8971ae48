"""The format onnx: a graph in float32 with dimensions that vary, and how every ONNX file is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import UserError
from trainer.export.devices import CPU_PROVIDER, providers_for
from trainer.export.processing import Arrays
from trainer.export.quiet import quiet

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from trainer.export.source import Source
    from trainer.inference import ExampleInputs

MODEL_FILE = "model.onnx"
DATA_SUFFIX = ".data"  # of weights beside the graph
LARGEST_FILE_GIB = 1.8  # protobuf ends at 2 GiB; beyond this, weights go to a file beside the graph
OUTPUT = "outputs"
# Its fused kernel takes several times as long on the CPU as the addition and normalisation that it replaces: with it
# a MiniLM of 144 tokens is 10 % slower in float32 and in eight bits (onnxruntime 1.32).
SLOWER_ON_CPU = ("SkipLayerNormFusion",)
# For so long a thread that waits for its part of a layer keeps its core. It is longer than from one layer to the next.
# The default is longer by far, and takes the core from a server's event loop: under load a batch then takes 8 % more.
SPIN_US = 20


def write(source: Source, folder: Path) -> None:
    """Write model.onnx, which computes no padding where the network can do without."""
    with source.model.without_padding() as network:
        write_graph(network, source.model.example_inputs(), folder)


def write_graph(network: nn.Module, example: ExampleInputs, folder: Path) -> None:
    """Write model.onnx of a network."""
    import torch

    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    with quiet():
        # fallback=True would hide the reason of a failure behind that of the older exporter.
        torch.onnx.export(
            network,
            (),
            str(folder / MODEL_FILE),
            kwargs=dict(example.tensors),
            dynamic_shapes={name: dict(axes) for name, axes in example.dynamic.items()},
            output_names=[OUTPUT],
            dynamo=True,
            external_data=size > LARGEST_FILE_GIB * 2**30,
            verbose=False,
        )


def open_network(folder: Path, gpu: int | None) -> Any:
    """The graph on the CPU or a GPU, as a function of arrays. Raises: UserError: see open_session."""
    return open_session(folder, providers_for(gpu))


def open_session(folder: Path, providers: Sequence[Any]) -> Any:
    """The graph as a function of arrays, with as many threads as OMP_NUM_THREADS says.

    Args: providers: of onnxruntime, as names or with their options; the first one has to be usable here.
    Raises: UserError: it is damaged, its weights lie outside of the folder, or the provider cannot be used.
    """
    import onnxruntime

    file = folder / MODEL_FILE
    check_external_data(file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of each weight that an optimisation makes superfluous
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():  # onnxruntime reads it only where it was built with OpenMP
        options.intra_op_num_threads = int(threads)
    disabled = SLOWER_ON_CPU if list(providers) == [CPU_PROVIDER] else ()
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=list(providers), disabled_optimizers=list(disabled)
        )
    except Exception as error:  # its classes have no common base
        raise UserError(f"{file}: onnxruntime cannot open it", str(error).splitlines()[0][:200]) from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if session.get_providers()[0] != wanted:  # it falls back to the next one and only logs why
        raise UserError(f"{file}: onnxruntime cannot use {wanted} here", "its message above says why")
    names = {each.name for each in session.get_inputs()}

    def forward(arrays: Arrays) -> np.ndarray:
        # Tracing leaves out an argument that no output depends on.
        given = {name: array for name, array in arrays.items() if name in names}
        return np.asarray(session.run([OUTPUT], given)[0], dtype=np.float32)

    return forward


def check_external_data(file: Path) -> None:
    """Weights may be in files beside the graph and nowhere else. Raises: UserError: otherwise, or it is damaged."""
    for tensor in _tensors(read_model(file).graph):
        for entry in tensor.external_data:
            place = file.parent / entry.value
            is_beside = Path(entry.value).name == entry.value and place.resolve().parent == file.parent.resolve()
            if entry.key == "location" and not is_beside:
                raise UserError(f"{file}: its weights are at {entry.value}, outside of the export's folder")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Weights and constants, also of the graphs inside of its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def read_model(file: Path) -> onnx.ModelProto:
    """The model without weights that lie beside it. Raises: UserError: it is damaged, or not a plain graph."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(file), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise UserError(f"{file}: cannot be read ({str(error)[:160]})") from error
    if model.functions:  # the exporters here write none, and a constant in one could name any file
        raise UserError(f"{file}: has functions of its own, so it is not one that export has written")
    return model
