"""Torch, the driver and the GPUs: whether they are compatible, compute correctly, and have room.

What torch knows comes from `probe.py`, what only the driver knows (clocks, throttling) from nvidia-smi.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.config.schema import Config
from trainer.errors import EXIT_DONE, counted
from trainer.estimate.memory import estimate
from trainer.launch.submit import submits
from trainer.task import get_task
from trainer.verbs.doctor.child import run_child
from trainer.verbs.doctor.report import Finding
from trainer.world import World, num_visible_gpus

# float32 products of 512 numbers are off by about 1e-6; TF32, or a defect, by 1e-3 or more.
LARGEST_ERROR = 1e-4
DRIVER_FIELDS = (
    "index", "driver_version", "clocks.sm", "clocks.max.sm", "temperature.gpu", "clocks_throttle_reasons.active",
)  # fmt: skip
# NVML's bits for clocks that a fault holds down; an idle GPU and a power cap are not faults.
THROTTLING = {0x08: "hardware slowdown", 0x20: "too hot (software)", 0x40: "too hot (hardware)", 0x80: "power brake"}
INSTALL_CUDA = "install a CUDA build of torch that the driver supports: https://pytorch.org/get-started/locally"
GIB = 2**30


def check_gpus(config: Config, world: World) -> Iterator[Finding]:
    """Torch and its libraries, then each GPU."""
    child = run_child([sys.executable, "-m", "trainer.verbs.doctor.probe"])
    if child.code != EXIT_DONE:
        yield Finding("torch", "failure", f"the query for devices failed: {child.error_line}", INSTALL_CUDA)
        return
    report = json.loads(child.output.strip().splitlines()[-1])
    yield from torch_findings(report, world, num_visible_gpus())
    yield from gpu_findings(report, world, "on the nodes of the job" if submits(config) else None)
    if report["gpus"]:
        yield from driver_findings()
        yield from room_findings(report, config, world)


def torch_findings(report: Mapping[str, Any], world: World, num_present: int) -> Iterator[Finding]:
    """Torch's build and arithmetic. Args: report: of the probe. num_present: GPUs, usable by torch or not."""
    built = f"CUDA {report['cuda']}, cuDNN {report['cudnn']}, NCCL {report['nccl']}" if report["cuda"] else "the CPU"
    found = f"{report['torch']}, built for {built}"
    if num_present and world.accelerator == "cuda" and report["cuda"] is None:
        yield Finding("torch", "failure", f"{found}; {counted(num_present, 'GPU')} here", INSTALL_CUDA)
    elif num_present and report["error"] is not None:
        status = "failure" if world.accelerator == "cuda" else "warning"
        yield Finding("torch", status, f"{found}; CUDA cannot be used: {report['error']}", INSTALL_CUDA)
    else:
        yield Finding("torch", "ok", found)
    if report["blas_error"] > LARGEST_ERROR:
        found = f"a matrix product on the CPU is off by {report['blas_error']:.1e} of its largest element"
        yield Finding("BLAS", "failure", found, "reinstall torch: python -m pip install --force-reinstall torch")


def gpu_findings(report: Mapping[str, Any], world: World, elsewhere: str | None) -> Iterator[Finding]:
    """Each GPU's memory and arithmetic, and the links between them.

    Args: elsewhere: where the GPUs of the run are; None where they are on this machine.
    """
    gpus: Sequence[Mapping[str, Any]] = report["gpus"]
    if not gpus:
        skipped = elsewhere or ("none that torch can use" if world.accelerator == "cuda" else None)
        yield Finding("GPUs", "skipped" if skipped else "ok", skipped or "none; runs on the CPU")
        return
    for index, gpu in enumerate(gpus):
        yield _gpu_finding(f"GPU {index}", gpu)
    if len(gpus) > 1:
        missing = report["without_peer_access"]
        pairs = ", ".join(f"{a}-{b}" for a, b in missing)
        found = f"no peer access between {pairs}" if missing else "peer access between all GPUs"
        remedy = "NCCL copies through host memory there: see `nvidia-smi topo -m`, and ACS and IOMMU in the BIOS"
        yield Finding("GPU links", "warning" if missing else "ok", found, remedy if missing else "")


def _gpu_finding(name: str, gpu: Mapping[str, Any]) -> Finding:
    if gpu["error"] is not None:
        remedy = f"see `nvidia-smi`; {INSTALL_CUDA}"
        return Finding(name, "failure", f"{gpu['name']}: {gpu['error']}", remedy)
    found = f"{gpu['name']}, {gpu['free'] / GIB:.1f} of {gpu['total'] / GIB:.1f} GiB free"
    for library, error in (("cuBLAS", gpu["blas_error"]), ("cuDNN", gpu["cudnn_error"])):
        if not error <= LARGEST_ERROR:
            remedy = "unset NVIDIA_TF32_OVERRIDE if it is set; else exclude this GPU: CUDA_VISIBLE_DEVICES=..."
            return Finding(name, "failure", f"{found}; {library} is off by {error:.1e} of the largest element", remedy)
    if gpu["free"] < gpu["total"] / 2:
        return Finding(name, "warning", found, "another process uses its memory: see `nvidia-smi`")
    return Finding(name, "ok", f"{found}; cuBLAS and cuDNN agree with the CPU")


def driver_findings() -> Iterator[Finding]:
    """The driver, and whether a fault holds clocks down."""
    if shutil.which("nvidia-smi") is None:
        yield Finding("driver", "warning", "no nvidia-smi: clocks are unknown", "install the driver's utilities")
        return
    query = ["nvidia-smi", f"--query-gpu={','.join(DRIVER_FIELDS)}", "--format=csv,noheader,nounits"]
    child = run_child(query)
    if child.code != EXIT_DONE:
        error = child.output.strip() or child.error_line
        yield Finding("driver", "warning", f"nvidia-smi: {error}", "reload the driver, or drain this node")
        return
    yield from parsed_driver(child.output)


def parsed_driver(text: str) -> Iterator[Finding]:
    """The driver and each GPU's clock. Args: text: nvidia-smi's values of DRIVER_FIELDS, one line for each GPU."""
    rows = [[field.strip() for field in line.split(",")] for line in text.strip().splitlines()]
    yield Finding("driver", "ok", f"{rows[0][1]}, {counted(len(rows), 'GPU')}")
    for index, _, clock, highest, temperature, reasons in rows:
        found = f"GPU {index}: {clock} of {highest} MHz, {temperature} degrees C"
        bits = int(reasons, 16) if reasons.startswith("0x") else 0
        held = [reason for bit, reason in THROTTLING.items() if bits & bit]
        remedy = "improve its cooling or power supply, or exclude it: its peers wait for it at every step"
        yield Finding("clocks", "warning" if held else "ok", ", ".join([found, *held]), remedy if held else "")


def room_findings(report: Mapping[str, Any], config: Config, world: World) -> Iterator[Finding]:
    """Whether the memory that `plan` estimates fits into the smallest GPU."""
    sizes = get_task(config.task.name, config.plugins).model_sizes(config)
    share = config.batch.global_size // world.world_size
    if world.accelerator != "cuda" or sizes is None or share == 0:
        return
    micro = min(config.batch.fixed_micro_size or share, share)
    precision, ranks = config.trainer.precision, world.world_size
    memory = estimate(config.strategy, precision, config.optimizer, sizes, ranks, micro)
    smallest = min(gpu["total"] for gpu in report["gpus"])
    if memory is None:
        return
    found = f"{memory.total / GIB:.2f} GiB a GPU, estimated, of {smallest / GIB:.1f}"
    if memory.total > smallest:
        remedy = f"batch.micro_size={max(1, micro // 2)}, or strategy=fsdp2; `plan` compares strategies"
        yield Finding("GPU memory", "failure", found, remedy)
    else:
        yield Finding("GPU memory", "ok", found)
