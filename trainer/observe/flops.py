"""What a GPU can do at most, from its datasheet; a GPU that is not listed has no MFU rather than a wrong one."""

from __future__ import annotations

# Dense (not sparse) tensor-core peaks in FLOP/s by a part of the name that CUDA reports: (bf16 or fp16, TF32).
# Sources: NVIDIA's datasheets of A100 (2020), H100 (2022), H200 (2023), B200 (2024), L4 and L40S (2023), A10G and
# RTX 4090 (Ada architecture paper, fp32 accumulation). The first match counts, so longer names stand first.
DATASHEET_FLOPS_PER_S: tuple[tuple[str, float, float], ...] = (
    ("H100 PCIe", 756e12, 378e12),
    ("H100 NVL", 835e12, 417e12),
    ("H100", 989e12, 495e12),
    ("H200", 989e12, 495e12),
    ("B200", 2250e12, 1125e12),
    ("A100", 312e12, 156e12),
    ("L40S", 362e12, 183e12),
    ("L4", 121e12, 60e12),
)


def peak_flops_per_s(device_name: str, precision: str) -> float | None:
    """Peak of one device at a precision; None for a device that is not listed.

    Args: device_name: as torch.cuda.get_device_name gives it. precision: Lightning's name; 32-true is taken as TF32.
    """
    for part, half, tf32 in DATASHEET_FLOPS_PER_S:
        if part in device_name.split() or (part in device_name and " " in part):
            return tf32 if precision == "32-true" else half
    return None
