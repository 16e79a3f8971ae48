"""What only a GPU can show of a profile: kernels in the trace, memory of the device, and torch's snapshot."""

import csv
import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import SPIRALS, CommandLine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]

WORDS = [
    f"plugins=[{SPIRALS}]", "task=spirals", "logger=none", "trainer.devices=1", "trainer.accelerator=cuda",
    "trainer.max_epochs=1", "profiler.steps=[5,7]", "run.root=here",
]  # fmt: skip


def profile(command_line: CommandLine, directory: Path, profiler: str) -> Path:
    done = command_line(*WORDS, f"profiler={profiler}", timeout_s=280)
    assert done.returncode == 0, done.stderr
    (run,) = (directory / "here" / "spirals").iterdir()
    return run / "profile"


def test_a_trace_holds_the_kernels_of_the_chosen_steps(command_line: CommandLine, tmp_path: Path) -> None:
    folder = profile(command_line, tmp_path, "torch")
    events = json.loads(gzip.decompress((folder / "trace-rank-0.json.gz").read_bytes()))["traceEvents"]
    steps = [e["name"] for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("step ")]
    assert sorted(steps) == ["step 5", "step 6", "step 7"]
    assert sum(event.get("cat") == "kernel" for event in events) > 30
    table = list(csv.DictReader((folder / "operators-rank-0.csv").open(newline="")))
    assert max(float(row["self_device_ms"]) for row in table) > 0


def test_memory_is_that_of_the_device(command_line: CommandLine, tmp_path: Path) -> None:
    folder = profile(command_line, tmp_path, "memory")
    assert (folder / "memory-rank-0.png").stat().st_size > 10_000
    assert "allocations, cuda, steps 5 to 7, rank 0" in (folder / "allocations-rank-0.txt").read_text()
    snapshot = pickle.loads((folder / "snapshot-rank-0.pickle").read_bytes())
    assert snapshot["segments"] and any(snapshot["device_traces"])
