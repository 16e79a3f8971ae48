"""Schemas of the `profiler` group: what is recorded of some steps, beyond the account that every run keeps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from trainer.config.schema import Config, Count, ProfilerConfig, settings
from trainer.errors import Problem
from trainer.world import World

# Lightning's names, and "null" for none, by ours.
LIGHTNING_NAMES: Mapping[str, str] = {"null": "none", "pytorch": "torch", "advanced": "python"}
# nsys sets it for the processes that it starts.
NSYS_SESSION_VARIABLE = "NSYS_PROFILING_SESSION_ID"


def _in_order(steps: list[int]) -> list[int]:
    if steps[0] > steps[1]:
        raise ValueError(f"the first step is after the last; use [{steps[1]},{steps[0]}]")
    return steps


Ranks = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
StepRange = Annotated[list[Count], Field(min_length=2, max_length=2), AfterValidator(_in_order)]


@settings
class HooksProfilerConfig(ProfilerConfig):
    """Lightning's times of its hooks and of callbacks, over the whole run."""

    ranks: Ranks
    """Ranks that are timed."""


@settings
class StepsProfilerConfig(ProfilerConfig):
    """A profiler that records some steps."""

    ranks: Ranks
    """Ranks that are recorded."""
    steps: StepRange
    """Steps that are recorded: the first and the last one, counted from 1."""


@settings
class TorchProfilerConfig(StepsProfilerConfig):
    """torch.profiler: a trace for Perfetto, and a table by operator."""


@settings
class MemoryProfilerConfig(StepsProfilerConfig):
    """Memory of tensors by category over time, and the largest allocations; on a GPU also torch's snapshot."""


@settings
class NsysProfilerConfig(StepsProfilerConfig):
    """Nsight Systems on a GPU, with a range for each step and each state of the clock."""


@settings
class PythonProfilerConfig(StepsProfilerConfig):
    """cProfile: Python's functions, in the thread that trains."""


PROFILERS: Mapping[str, type[ProfilerConfig]] = {
    "none": ProfilerConfig,
    "simple": HooksProfilerConfig,
    "torch": TorchProfilerConfig,
    "memory": MemoryProfilerConfig,
    "nsys": NsysProfilerConfig,
    "python": PythonProfilerConfig,
}


def profiler_problems(config: Config, world: World) -> Iterator[Problem]:
    """Ranks that the run does not have, and what Nsight Systems needs."""
    profiler = config.profiler
    if isinstance(profiler, HooksProfilerConfig | StepsProfilerConfig) and not world.resized:
        missing = [rank for rank in profiler.ranks if rank >= world.world_size]
        if missing:
            last = world.world_size - 1
            advice = f"the run has no rank {missing[0]}; possible: {f'0 to {last}' if last else '0'}"
            yield Problem("profiler.ranks", profiler.ranks, advice)
    if isinstance(profiler, NsysProfilerConfig):
        yield from _nsys_problems(config, world)


def _nsys_problems(config: Config, world: World) -> Iterator[Problem]:
    if world.accelerator == "cpu":
        yield Problem("profiler", "nsys", "records GPUs, and this run uses the CPU; use torch, memory or python")
    elif shutil.which("nsys") is None:
        advice = "no nsys on PATH: install NVIDIA Nsight Systems (nsight-systems-cli), or use profiler=torch"
        yield Problem("profiler", "nsys", advice)
    elif (world.joined or config.launch.name == "slurm") and NSYS_SESSION_VARIABLE not in os.environ:
        advice = "cannot wrap ranks that torchrun or srun starts; run the launcher under nsys, or use profiler=torch"
        yield Problem("profiler", "nsys", advice)
