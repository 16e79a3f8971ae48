"""The profiler of this rank, from the configuration."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.profilers import Profiler

from trainer.clock import StepClock
from trainer.config.profilers import HooksProfilerConfig, StepsProfilerConfig
from trainer.config.schema import Config
from trainer.errors import UserError, counted
from trainer.profile.functions import PythonRecorder
from trainer.profile.hooks import HookTimes
from trainer.profile.memory import MemoryRecorder
from trainer.profile.nsight import NsightRecorder
from trainer.profile.operators import TorchRecorder
from trainer.profile.steps import ProfiledSteps
from trainer.run.files import PROFILE_DIR

RECORDERS = {"torch": TorchRecorder, "memory": MemoryRecorder, "nsys": NsightRecorder, "python": PythonRecorder}


def build_profiled_steps(config: Config, rank: int, run_dir: Path, clock: StepClock) -> list[ProfiledSteps]:
    """The callback that records steps of this rank; none where nothing is recorded here."""
    profiler = config.profiler
    if not isinstance(profiler, StepsProfilerConfig) or rank not in profiler.ranks:
        return []
    first, last = profiler.steps
    recorder = RECORDERS[profiler.name](run_dir / PROFILE_DIR, rank, (first, last))
    return [ProfiledSteps(recorder, (first, last), clock)]


def build_hook_times(config: Config, rank: int, run_dir: Path) -> Profiler | None:
    """Lightning's profiler of this rank, for its Trainer; None where hooks are not timed here."""
    profiler = config.profiler
    if not isinstance(profiler, HooksProfilerConfig) or rank not in profiler.ranks:
        return None
    return HookTimes(run_dir / PROFILE_DIR, rank)


def check_profiled_steps(config: Config, num_steps: int) -> None:
    """Raises: UserError: the run ends before the last step to record. Args: num_steps: of the whole run."""
    profiler = config.profiler
    if not isinstance(profiler, StepsProfilerConfig) or profiler.steps[1] <= num_steps:
        return
    first, last = profiler.steps
    possible = [max(1, num_steps - (last - first)), num_steps]
    raise UserError(
        f"profiler.steps=[{first},{last}]: the run has only {counted(num_steps, 'step')}",
        f"use profiler.steps=[{possible[0]},{possible[1]}], or a longer run",
    )
