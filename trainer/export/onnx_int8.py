"""The format onnx_int8: weights in eight bits, activations too.

Ranges of activations are taken from each input (dynamic) where the work is matrix products, and from training data
(static) where it is convolutions, for which onnxruntime has no fast dynamic kernel.

Weights use seven of the eight bits (reduce_range): x86 without VNNI adds pairs of products in 16 bits, which would
saturate, so that the same file would compute something else on another machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.export import onnx_file
from trainer.export.processing import Arrays
from trainer.export.quiet import quiet
from trainer.export.source import Source

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
CALIBRATION_BATCHES, CALIBRATION_SIZE = 16, 16


def write(source: Source, folder: Path) -> None:
    """Quantise the graph in float32. Raises: UserError: calibration needs training data, which is not there."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    target = folder / onnx_file.MODEL_FILE
    with quiet(), tempfile.TemporaryDirectory() as place:
        onnx_file.write(source, Path(place))
        model = onnx.load(str(Path(place) / onnx_file.MODEL_FILE))
        # Shapes of the dynamo exporter have names that the quantiser's own inference contradicts.
        del model.graph.value_info[:]
        prepared = Path(place) / "prepared.onnx"
        onnx.save(model, str(Path(place) / "plain.onnx"))
        quant_pre_process(str(Path(place) / "plain.onnx"), str(prepared), skip_symbolic_shape=True)
        if not CONVOLUTIONS & {node.op_type for node in model.graph.node}:
            quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
            return
        reader = _Calibration(source)
        quantize_static(
            prepared,
            target,
            reader,  # pyright: ignore[reportArgumentType] - only get_next is called
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def open_network(folder: Path, gpu: int | None) -> Any:
    """See onnx_file. Kernels for eight bits are those of the CPU."""
    return onnx_file.open_network(folder, gpu)


class _Calibration:
    """Training inputs, spread over the set, in batches; a CalibrationDataReader."""

    def __init__(self, source: Source) -> None:
        inputs = source.calibration
        if not len(inputs):
            advice = "name where it is now with data.KEY=VALUE"
            raise UserError("format=onnx_int8: needs the run's training data for ranges of activations", advice)
        count = min(len(inputs), CALIBRATION_BATCHES * CALIBRATION_SIZE)
        chosen = [inputs[number * len(inputs) // count] for number in range(count)]
        starts = range(0, count, CALIBRATION_SIZE)
        self.batches = iter([chosen[start : start + CALIBRATION_SIZE] for start in starts])
        self.model = source.model

    def get_next(self) -> Arrays | None:
        """The arguments of the next batch; None at the end."""
        batch = next(self.batches, None)
        if batch is None:
            return None
        return {name: tensor.cpu().numpy() for name, tensor in self.model.preprocess(batch).items()}
