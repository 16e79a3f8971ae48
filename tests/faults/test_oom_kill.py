"""The kernel kills a rank that has more memory than its control group allows; the run goes on from its checkpoint."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS
from safetensors.torch import load_file
from two_ranks import only_run
from warm import run_warm
from watching import leftovers

CONTROL_GROUPS = Path("/sys/fs/cgroup")
LIMIT_BYTES = 64 * 2**20
WORDS = [
    "-m",
    "trainer",
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.devices=2",
    "trainer.max_steps=16",
    "checkpoint.every_n_steps=5",
    "run.name=run",
]


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory control group with a limit; version 1 has a tree for memory alone."""
    version_1 = (CONTROL_GROUPS / "memory").is_dir()
    folder = CONTROL_GROUPS / ("memory" if version_1 else "") / f"trainer-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT_BYTES))
        yield folder
    except OSError as error:
        pytest.skip(f"the memory of a control group cannot be limited here: {error}")
    finally:
        folder.rmdir()


def num_kills(group: Path) -> int:
    file = next(group / name for name in ("memory.oom_control", "memory.events") if (group / name).exists())
    return int(dict(line.split() for line in file.read_text().strip().split("\n"))["oom_kill"])


@pytest.mark.slow
def test_a_rank_that_the_kernel_kills_for_its_memory(group: Path, tmp_path: Path) -> None:
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    done = run_warm(WORDS, cwd=tmp_path / "killed", env={"FAULT": "oom:1:12", "MEMORY_GROUP": str(group)})
    assert done.returncode == 1, done.stderr
    assert num_kills(group) == 1
    assert "rank 1 was ended by SIGKILL; out of memory?" in "\n".join(done.stderr.rstrip().split("\n")[-3:])
    assert leftovers(tmp_path / "killed") == []
    run = only_run(tmp_path / "killed")
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["step"] == 10
    for name in ("killed", "whole"):
        done = run_warm(WORDS, cwd=tmp_path / name)
        assert done.returncode == 0, done.stderr
    ours, theirs = (only_run(tmp_path / name) / "model.safetensors" for name in ("killed", "whole"))
    assert {name: t.tolist() for name, t in load_file(ours).items()} == {
        name: t.tolist() for name, t in load_file(theirs).items()
    }
