"""What the driver says about a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def device_state(device: torch.device) -> dict[str, float]:
    """Utilisation, power, temperature and clock of a GPU, by torch's calls of NVML; empty where pynvml is missing.

    The driver's utilisation is the share of time in which any kernel ran, however small: see perf/mfu for its use.
    """
    if find_spec("pynvml") is None:
        return {}
    return {
        "sys/gpu_utilization": torch.cuda.utilization(device) / 100,
        "sys/gpu_power_w": torch.cuda.power_draw(device) / 1000,
        "sys/gpu_temperature_c": float(torch.cuda.temperature(device)),
        "sys/gpu_clock_mhz": float(torch.cuda.clock_rate(device)),
    }
