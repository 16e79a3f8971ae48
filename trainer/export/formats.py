"""The formats of an export: what each needs, and how exact it has to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

from trainer.errors import UserError, nearest


@dataclass(frozen=True)
class Tolerance:
    """Of an export compared with the run's network in float32.

    largest, mean: absolute differences of outputs, in units of their root mean square, or of 1 where that is smaller.
    points: of the metric, a point is 0.01, or 1 % of a metric that is no share. of_spread: the unit is the standard
    deviation of outputs over inputs instead, whatever they have in common.
    """

    largest: float
    mean: float
    points: float
    of_spread: bool = False

    def unit(self, outputs: np.ndarray) -> float:
        """Of differences from these outputs; axis 0 is the input."""
        if self.of_spread:
            return float(np.sqrt(np.var(outputs, axis=0).mean()))
        return max(1.0, float(np.sqrt(np.square(outputs).mean())))


@dataclass(frozen=True)
class Format:
    """module: in this package, with `write(source, folder)` and `open_network(folder, gpu)`. packages: that it needs to
    run. writers: further ones to be written. is_native: it is machine code for one instruction set. gpu_runtime: the
    package that computes it on GPUs; None where it computes on the CPU alone. skips_padding: it is traced from
    `without_padding` of the model.
    """

    module: str
    tolerance: Tolerance
    packages: Sequence[str] = ()
    writers: Sequence[str] = ()
    is_native: bool = False
    gpu_runtime: Literal["torch", "onnxruntime"] | None = None
    skips_padding: bool = False


EXACT, HALF = Tolerance(1e-4, 1e-5, 0.1), Tolerance(2e-2, 2e-3, 0.1)
EIGHT_BITS = Tolerance(1.0, 0.1, 0.5, of_spread=True)
ONNX, ONNX_WRITERS = ("onnx", "onnxruntime"), ("onnxscript",)

# Half precision has 11 significant bits, so an output of 8 is known to 0.004. Eight bits are judged by the metric; the
# bound on the mean difference is what a metric on few samples does not see. Its unit is the spread: a model that has
# learned little answers almost the same to every input, and other weights would change less than eight bits may.
FORMATS: Mapping[str, Format] = {
    "safetensors": Format("weights", EXACT, gpu_runtime="torch"),
    "torch_export": Format("program", EXACT, gpu_runtime="torch"),
    "aot_inductor": Format("compiled", EXACT, is_native=True),
    "onnx": Format("onnx_file", EXACT, ONNX, ONNX_WRITERS, gpu_runtime="onnxruntime", skips_padding=True),
    "onnx_fp16": Format("onnx_fp16", HALF, ONNX, ONNX_WRITERS, gpu_runtime="onnxruntime", skips_padding=True),
    "onnx_int8": Format("onnx_int8", EIGHT_BITS, ONNX, ONNX_WRITERS, skips_padding=True),
    "tensorrt": Format("tensorrt", HALF, ONNX, ONNX_WRITERS, gpu_runtime="onnxruntime"),
}


def requested(text: str) -> list[str]:
    """Formats of `format=A,B`. Raises: UserError: there is no such format, or a package is missing."""
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise UserError(f"format={name}: no such format; {nearest(name, list(FORMATS))}")
        require_packages(name, FORMATS[name].writers)
    return names


def require_packages(name: str, more: Sequence[str] = ()) -> None:
    """Raises: UserError: a package that the format needs to run, or one more, is missing."""
    missing = [package for package in (*FORMATS[name].packages, *more) if find_spec(package) is None]
    if missing:
        advice = 'install them with: pip install "hydra-lightning-trainer[export]"'
        raise UserError(f"format={name}: needs {', '.join(missing)}", advice)
