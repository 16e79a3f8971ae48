"""Peak throughput of GPUs from their datasheets, for MFU; an unlisted GPU has none rather than a guessed one."""

from __future__ import annotations

import re

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
