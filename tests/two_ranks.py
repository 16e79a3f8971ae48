"""Many runs on two ranks, and the same ones in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from warm import run_warm

from trainer.cli import main
from trainer.run.files import write_json


def in_one_process(directory: Path, words: list[str]) -> Path:
    """Do a command line in a new directory. Returns: the directory of its run."""
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(words) == 0
    return only_run(directory)


def only_run(directory: Path) -> Path:
    """The run called `run` below a directory."""
    (run,) = directory.glob("outputs/*/run")
    return run


def rewound(source: Path, target: Path, step: int) -> None:
    """Copy a finished run into the state of one that was stopped after a step."""
    shutil.copytree(source, target, symlinks=True)
    for checkpoint in (target / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    for link in ("last", "best"):
        (target / "checkpoints" / link).unlink(missing_ok=True)
    (target / "model.safetensors").unlink()
    record = json.loads((target / "run.json").read_text())
    write_json(target / "run.json", {**record, "status": "stopped"})


def on_two_ranks(folder: Path, lines: dict[Path, list[str]]) -> dict[Path, list[dict[str, Any]]]:
    """Do command lines on two ranks under torchrun. Returns: what each rank reported, by directory."""
    file = folder / "lines.json"
    file.write_text(json.dumps([{"directory": str(d), "words": words} for d, words in lines.items()]))
    script = REPOSITORY / "tests" / "distributed" / "many_runs.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run_warm([*launcher, str(script), str(file)], cwd=folder, timeout_s=800)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in (0, 1)]
    assert all(report["code"] == 0 for reports in ranks for report in reports), done.stdout + done.stderr
    return {directory: list(reports) for directory, *reports in zip(lines, *ranks, strict=True)}
