"""Peak throughput of a device, for MFU: from its datasheet, and measured with a matrix product.

An unlisted device has no datasheet peak rather than a guessed one.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

# Dense (not sparse) tensor-core peaks in FLOP/s: (words of the name that CUDA reports, bf16 or fp16, TF32).
# Sources: NVIDIA's datasheets of A100 (2020), H100 (2022), H100 NVL (2024), H200 and H200 NVL (2024), B200 (2024), L4
# and L40S (2023). The first match counts, so a form factor with a peak of its own comes before the others.
DATASHEET_FLOPS_PER_S: tuple[tuple[str, float, float], ...] = (
    ("H100 PCIe", 756e12, 378e12),
    ("H100 NVL", 835e12, 417e12),
    ("H100", 989e12, 495e12),
    ("H200 NVL", 835e12, 417e12),
    ("H200", 989e12, 495e12),
    ("B200", 2250e12, 1125e12),
    ("A100", 312e12, 156e12),
    ("L40S", 362e12, 183e12),
    ("L4", 121e12, 60e12),
)


# Large enough that a product takes far longer than its launch, small enough that a run's start does not wait for it.
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}
NUM_PRODUCTS = 5


@dataclass(frozen=True)
class Peaks:
    """FLOP/s of one device at a run's precision. datasheet: None for a device that is not listed."""

    datasheet: float | None
    measured: float


def find_peaks(device: torch.device, precision: str) -> Peaks:
    """Both peaks of this rank's device. Args: precision: Lightning's name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    datasheet = None if name is None else peak_flops_per_s(name, precision)
    return Peaks(datasheet, measured_flops_per_s(device, precision))


def measured_flops_per_s(device: torch.device, precision: str) -> float:
    """The fastest of a few square matrix products in the type that a precision computes in; no numbers are drawn."""
    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.partition("-")[0], torch.float32)
    size = PRODUCT_SIZE[device.type]
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    fastest_s = float("inf")
    # The first one also loads the kernel.
    for _ in range(NUM_PRODUCTS + 1):
        start = time.perf_counter()
        torch.matmul(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest_s = min(fastest_s, time.perf_counter() - start)
    return 2 * size**3 / fastest_s


def peak_flops_per_s(device_name: str, precision: str) -> float | None:
    """Peak of one device at a precision; None for a device that is not listed, and for a MIG slice of one.

    Args: device_name: from torch.cuda.get_device_name. precision: Lightning's name; 32-true is taken as TF32.
    """
    words = set(re.split(r"[ -]", device_name.upper()))
    if "MIG" in words:
        return None
    for name, half, tf32 in DATASHEET_FLOPS_PER_S:
        if words.issuperset(name.upper().split()):
            return tf32 if precision == "32-true" else half
    return None
