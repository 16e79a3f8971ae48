"""profiler=nsys: the command under a stand-in for Nsight Systems, and what is asked of a GPU."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SPIRALS_WORDS
from runs import only_run

from trainer.clock import StepClock
from trainer.config.compose import compose_mapping, typed
from trainer.config.profilers import profiler_problems
from trainer.errors import UserError
from trainer.launch.nsys import needs_nsys, run_under_nsys
from trainer.profile.nsight import NsightRecorder
from trainer.profile.steps import ProfiledSteps
from trainer.verbs.fit import fit_run
from trainer.verbs.prepare import PreparedRun
from trainer.world import World

WORDS = [*SPIRALS_WORDS, "trainer.enable_progress_bar=false", "data.num_test=0"]

NSYS = f"""#!{sys.executable}
import json, os, subprocess, sys
arguments = sys.argv[1:]
command = arguments[next(number for number, word in enumerate(arguments) if number and not word.startswith("-")) :]
output = next(word.partition("=")[2] for word in arguments if word.startswith("--output="))
code = subprocess.call(command)
with open(output + ".nsys-rep", "w") as file:
    json.dump(arguments[: -len(command)], file)
sys.exit(code)
"""


@pytest.fixture
def nsys(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for nsys, which runs the command and writes its own arguments as the recording."""
    folder = in_directory / "bin"
    folder.mkdir()
    (folder / "nsys").write_text(NSYS)
    (folder / "nsys").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.slow
def test_the_command_runs_under_nsys(nsys: None, in_directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "max_epochs=1", "limit_train_batches=1", "limit_val_batches=0"]
    assert run_under_nsys(words, num_nodes=1) == 0
    run = only_run(in_directory / "outputs")
    arguments = json.loads((run / "profile" / "nsys.nsys-rep").read_text())
    assert {"profile", "--capture-range=cudaProfilerApi", "--capture-range-end=stop"} <= set(arguments)
    printed = capfd.readouterr().out
    assert "1 step done" in printed
    assert printed.endswith(f"  profile  {run.relative_to(in_directory)}/profile/nsys.nsys-rep\n")
    assert run_under_nsys([*words, "max_epochs=0"], num_nodes=1) == 2
    assert "trainer.max_epochs=0" in capfd.readouterr().err


def test_what_nsys_needs(nsys: None, in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, task = typed(compose_mapping([*WORDS, "profiler=nsys"]))
    world = World("single", "cuda", world_size=1, local_world_size=1, num_nodes=1)
    assert list(profiler_problems(config, world)) == [] and needs_nsys(config)
    joined = replace(world, launcher="torchrun")
    (problem,) = profiler_problems(config, joined)
    assert "run the launcher under nsys" in str(problem)
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    assert list(profiler_problems(config, joined)) == [] and not needs_nsys(config)
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID")
    with pytest.raises(UserError, match="only the command starts itself under nsys"):
        fit_run(PreparedRun(config, {}, task, world))
    (in_directory / "bin" / "nsys").unlink()
    monkeypatch.setenv("PATH", str(in_directory / "bin"))
    (problem,) = profiler_problems(config, world)
    assert "no nsys on PATH: install NVIDIA Nsight Systems" in str(problem)


def test_nsight_records_the_chosen_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's calls are noted, since they need a GPU."""
    notes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: notes.append("wait"))
    for name in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, name, lambda name=name: notes.append(name))
    monkeypatch.setattr(torch.cuda.nvtx, "range_start", lambda name: (notes.append(f"+{name}"), name)[1])
    monkeypatch.setattr(torch.cuda.nvtx, "range_end", lambda opened: notes.append(f"-{opened}"))
    clock = StepClock()
    callback: Any = ProfiledSteps(NsightRecorder(tmp_path, 0, (2, 2)), (2, 2), clock)
    callback.on_train_start(SimpleNamespace(global_step=0), SimpleNamespace(networks=lambda: {"model": None}))
    for _ in range(3):
        for state in ("data_wait", "forward", "other"):
            clock.enter(state)
        clock.end_step()
    ranges = ["+step 2", "+data_wait", "-data_wait", "+forward", "-forward", "-step 2"]
    assert notes == ["wait", "start", *ranges, "wait", "stop"]
