"""Runs of the three tasks with an export, and servers of them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dcgan_runs import DCGAN, FAST

from trainer.cli import main

SHORT = [*FAST, "trainer.limit_train_batches=12", "trainer.limit_val_batches=4"]
TRAINED = {
    "cnn": ["task=cnn", *SHORT],
    "bert": ["task=bert", *SHORT],
    # A large learning rate: after so few steps images must differ from each other.
    "dcgan": [*DCGAN, "optimizer.lr=0.02", "task.num_scored=41", "task.num_samples=9"],
}


def exported_run(task: str, folder: Path) -> Path:
    """A run of a few steps below a folder, exported to ONNX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TRAINED[task], f"run.name={task}"]) == 0
        run = folder / "outputs" / task / task
        assert main(["export", f"run={run}", "format=onnx"]) == 0
    return run


@contextmanager
def served(run: Path, *words: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "trainer", "serve", f"run={run}", "port=0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+:\d+", server.stdout.readline())
            assert found is not None, "its message is above"
            yield found[0]
        finally:
            server.terminate()
    assert server.returncode == 0
