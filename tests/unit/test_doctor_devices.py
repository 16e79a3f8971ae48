"""Findings about devices that the test machine does not have, and the doctor's arithmetic."""

from collections.abc import Iterator
from typing import Any

import pytest

from trainer.verbs.doctor.all_reduce import bus_bandwidth_gb_per_s
from trainer.verbs.doctor.devices import gpu_findings, parsed_driver, torch_findings
from trainer.verbs.doctor.operators import needed_builders
from trainer.verbs.doctor.report import Finding
from trainer.world import World

TWO_GPUS = World("elastic", "cuda", 2, 2, 1)


def test_bandwidth_is_that_of_nccl_tests() -> None:
    """doc/PERFORMANCE.md: 8 ranks, algorithm bandwidth 100 GB/s: bus bandwidth 175 GB/s."""
    assert bus_bandwidth_gb_per_s(10**9, 0.01, 8) == pytest.approx(175.0)


def test_operators_that_a_file_asks_for() -> None:
    nvme = {"zero_optimization": {"offload_optimizer": {"device": "nvme", "pin_memory": True}}}
    assert needed_builders(nvme, {}) == ["AsyncIOBuilder"]
    assert needed_builders(nvme, {"DS_PIN_MEMORY_BACKEND": "native"}) == ["AsyncIOBuilder", "PinMemoryBuilder"]
    assert needed_builders({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, {}) == [
        "QuantizerBuilder"
    ]
    assert needed_builders({"zero_optimization": {"stage": 3}}, {"DS_PIN_MEMORY_BACKEND": "native"}) == []


# Reports of the probe from machines that tests do not have.
GPU: dict[str, Any] = {
    "name": "H100", "total": 80 * 2**30, "free": 79 * 2**30, "error": None, "blas_error": 1e-7, "cudnn_error": 1e-7,
}  # fmt: skip
REPORT: dict[str, Any] = {
    "torch": "2.13.0", "cuda": "13.0", "cudnn": 91000, "nccl": "2.27.3", "blas_error": 1e-7, "error": None,
    "gpus": [GPU, GPU], "without_peer_access": [],
}  # fmt: skip


def statuses(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings}


def test_healthy_and_faulty_gpus() -> None:
    assert statuses(torch_findings(REPORT, TWO_GPUS, 2)) == {"torch": "ok"}
    assert statuses(gpu_findings(REPORT, TWO_GPUS, None)) == {"GPU 0": "ok", "GPU 1": "ok", "GPU links": "ok"}
    cpu_build = {**REPORT, "cuda": None, "gpus": []}
    (found,) = torch_findings(cpu_build, TWO_GPUS, 2)
    assert (found.status, found.found) == ("failure", "2.13.0, built for the CPU; 2 GPUs here")
    old_driver = {**REPORT, "error": "the NVIDIA driver on your system is too old", "gpus": []}
    assert statuses(torch_findings(old_driver, TWO_GPUS, 2)) == {"torch": "failure"}
    assert statuses(torch_findings({**REPORT, "blas_error": 0.1}, TWO_GPUS, 2))["BLAS"] == "failure"
    faulty = {**REPORT, "gpus": [{**GPU, "blas_error": 0.02}, {**GPU, "free": 2**30}], "without_peer_access": [(0, 1)]}
    assert statuses(gpu_findings(faulty, TWO_GPUS, None)) == {
        "GPU 0": "failure", "GPU 1": "warning", "GPU links": "warning",
    }  # fmt: skip
    nan = {**REPORT, "gpus": [{**GPU, "cudnn_error": float("nan")}]}
    assert statuses(gpu_findings(nan, TWO_GPUS, None)) == {"GPU 0": "failure"}


def test_clocks_held_down_by_a_fault() -> None:
    lines = "0, 580.65, 210, 1980, 31, 0x0000000000000001\n1, 580.65, 345, 1980, 92, 0x0000000000000040\n"
    driver, idle, hot = parsed_driver(lines)
    assert driver.found == "580.65, 2 GPUs"
    assert idle.status == "ok"
    assert (hot.status, hot.found) == ("warning", "GPU 1: 345 of 1980 MHz, 92 degrees C, too hot (hardware)")
