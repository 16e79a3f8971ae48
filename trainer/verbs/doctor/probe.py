"""What torch finds on this machine, as a line of JSON: `python -m trainer.verbs.doctor.probe`.

A process of its own, because a broken driver hangs or crashes the process that calls it.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch.cuda import nccl

SIDE = 512


def main() -> None:
    """Print the report."""
    print(json.dumps(probe()))


def probe() -> dict[str, Any]:
    """Versions, GPUs and their links. error: why CUDA cannot be used, null where it can be or is not built in."""
    report: dict[str, Any] = {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "blas_error": relative_error(torch.device("cpu")),
        "nccl": None,
        "error": None,
        "gpus": [],
        "without_peer_access": [],
    }
    if torch.version.cuda is None:
        return report
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return {**report, "error": str(error).strip().splitlines()[0]}
    count = torch.cuda.device_count()
    report["nccl"] = ".".join(map(str, nccl.version()))
    report["gpus"] = [gpu(index) for index in range(count)]
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    report["without_peer_access"] = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    return report


def gpu(index: int) -> dict[str, Any]:
    """One GPU: memory in bytes, and the error of a matrix product (cuBLAS) and a convolution (cuDNN) on it.

    error: why either cannot be computed at all.
    """
    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    found: dict[str, Any] = {"name": properties.name, "total": properties.total_memory, "error": None}
    try:
        found["free"], found["total"] = torch.cuda.mem_get_info(device)
        found["blas_error"] = relative_error(device)
        found["cudnn_error"] = convolution_error(device)
    except RuntimeError as error:
        found["error"] = str(error).strip().splitlines()[0]
    return found


def relative_error(device: torch.device) -> float:
    """Largest error of a float32 matrix product, as a share of the largest element of the same in float64."""
    torch.backends.cuda.matmul.allow_tf32 = False
    left, right = numbers(SIDE, SIDE), numbers(SIDE, SIDE).T
    return compared((left.float().to(device) @ right.float().to(device)), left @ right)


def convolution_error(device: torch.device) -> float:
    """The same for a convolution."""
    torch.backends.cudnn.allow_tf32 = False
    images, kernels = numbers(64, 256).view(4, 4, 32, 32), numbers(8, 36).view(8, 4, 3, 3)
    found = torch.nn.functional.conv2d(images.float().to(device), kernels.float().to(device))
    return compared(found, torch.nn.functional.conv2d(images, kernels))


def numbers(rows: int, columns: int) -> torch.Tensor:
    """Fixed numbers of both signs: (rows, columns) float64."""
    return torch.sin(torch.arange(rows * columns, dtype=torch.float64)).view(rows, columns)


def compared(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest expected element."""
    return float((found.cpu().double() - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
