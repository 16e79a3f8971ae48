"""The devices that an export computes on: the CPU, or a GPU for each copy of it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trainer.errors import UserError
from trainer.export.formats import FORMATS

if TYPE_CHECKING:
    import torch

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"


def assigned_gpus(copies: int, device: str, format_name: str, num_gpus: int) -> list[int | None]:
    """The GPU of each of several copies of an export that compute at the same time; None is the CPU.

    Args: device: auto, cpu or cuda; auto takes GPUs where there are any for the format. num_gpus: that the format can
        use here.
    Raises: UserError: the format has no such device, there is no GPU, or there are fewer than copies.
    """
    runtime = FORMATS[format_name].gpu_runtime
    if device == "cpu" and format_name == "tensorrt":
        raise UserError("device=cpu: an export in the format tensorrt computes on GPUs alone; choose device=cuda")
    if device == "cuda" and runtime is None:
        possible = ", ".join(name for name, each in FORMATS.items() if each.gpu_runtime is not None)
        raise UserError(f"device=cuda: the format {format_name} computes on the CPU; on a GPU compute {possible}")
    if device == "cuda" and num_gpus == 0:
        package = "onnxruntime-gpu in place of onnxruntime" if runtime == "onnxruntime" else "torch for CUDA"
        raise UserError(f"device=cuda: {runtime} finds no GPU here", f"install {package}, or choose device=cpu")
    if device == "cpu" or runtime is None or num_gpus == 0:
        return [None] * copies
    # Two copies on one GPU compute one after the other and need twice the memory.
    if copies > num_gpus:
        advice = "fewer workers, or device=cpu"
        raise UserError(f"workers={copies}: each needs a GPU of its own, and there are {num_gpus}; {advice}")
    return list(range(copies))


def count_gpus(format_name: str) -> int:
    """GPUs that a format can use here, with the packages that are installed."""
    runtime = FORMATS[format_name].gpu_runtime
    if runtime == "torch":
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if runtime == "onnxruntime":
        import onnxruntime

        return _count_of_driver() if CUDA_PROVIDER in onnxruntime.get_available_providers() else 0
    return 0


def _count_of_driver() -> int:
    """Visible GPUs; onnxruntime counts none, and a server of ONNX does not import torch."""
    count = ctypes.c_int(0)
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def providers_for(gpu: int | None) -> Sequence[Any]:
    """Of onnxruntime, the most wanted one first."""
    if gpu is None:
        return [CPU_PROVIDER]
    # TF32, which it would use, has 10 bits: less than what an export was proved with.
    return [(CUDA_PROVIDER, {"device_id": gpu, "use_tf32": 0}), CPU_PROVIDER]


def torch_device(gpu: int | None) -> torch.device:
    """The device of torch, where convolutions are computed in float32 from then on, as an export was proved."""
    import torch

    if gpu is None:
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", gpu)


def device_name(gpu: int | None) -> str:
    """As torch writes it."""
    return "cpu" if gpu is None else f"cuda:{gpu}"
