"""A full disk, a read-only file system, a lost permission: said at once, with the checkpoint before it as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, SPIRALS
from safetensors.torch import load_file
from watching import run_forked

from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.writing import CheckpointWriter, Save
from trainer.cli import main

# A checkpoint of 0.8 MB at each of the steps 5, 10, ..., 30 and 32.
WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=2",
    "trainer.limit_val_batches=0",
    "checkpoint.every_n_steps=5",
    "model.dropout=0.3",
    "model.width=20000",
    "run.name=run",
]
NOBODY = 65534
MODES = {"at once": [], "beside training": ["checkpoint.asynchronous=true"]}


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(in_directory: Path) -> Iterator[Path]:
    """A file system in memory of 3 MB, below the working directory."""
    disk = in_directory / "outputs"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=3000k", "tmpfs", str(disk)):
        pytest.skip("only root can mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(WORDS) == 0
    return run_of(directory)


def run_of(directory: Path) -> Path:
    return directory / "outputs" / "faulty" / "run"


def around_writes(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda step: None, after_failure: Any = None
) -> None:
    """Call a function before each write, with its step, and one after a write that the storage has refused."""
    write = CheckpointWriter._write

    def watched(self: CheckpointWriter, save: Save, parts: Any) -> str | None:
        before(save.step)
        failure = write(self, save, parts)
        if failure is not None and after_failure is not None:
            after_failure()
        return failure

    monkeypatch.setattr(CheckpointWriter, "_write", watched)


def assert_stopped_with(error: str, cause: str, run: Path, steps: list[int]) -> None:
    """The message has three lines, and the checkpoints before are valid, and no others there."""
    assert f"the checkpoint of step {steps[-1] + 5} cannot be written" in error and cause in error, error
    assert "Traceback" not in error and len(error.strip().split("\n")) <= 3
    store = CheckpointStore(run)
    assert [path.name for path in store.checkpoints()] == [f"step-{step:08d}" for step in steps]
    assert store.newest_valid() == (store.path(steps[-1]), {})
    assert (store.directory / "last").resolve() == store.path(steps[-1]).resolve()


def assert_same_end(run: Path, expected: Path) -> None:
    ours, theirs = load_file(run / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_stops_the_run_which_goes_on_once_there_is_space(
    mode: str, disk: Path, undisturbed: Path, in_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*WORDS, *MODES[mode]]
    assert main([*words, "checkpoint.keep=9"]) == 2
    assert_stopped_with(capsys.readouterr().err, "No space left on device", run_of(in_directory), [5, 10, 15])
    assert not list((run_of(in_directory) / "checkpoints").glob(".step-*"))
    assert mount("-o", "remount,size=40m", str(disk))
    assert main([*words, "checkpoint.keep=9"]) == 0
    assert_same_end(run_of(in_directory), undisturbed)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_may_train_on_and_try_again(
    mode: str, disk: Path, undisturbed: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # Room for one checkpoint, but not for the next one beside it.
    (disk / "ballast").write_bytes(bytes(1_900_000))
    around_writes(monkeypatch, after_failure=lambda: mount("-o", "remount,size=40m", str(disk)))
    assert main([*WORDS, *MODES[mode], "checkpoint.on_write_error=continue"]) == 0
    error = capsys.readouterr().err
    assert error.count("warning: the checkpoint of step 10 is not written") == 1
    assert "No space left on device" in error
    assert_same_end(run_of(in_directory), undisturbed)
    store = CheckpointStore(run_of(in_directory))
    assert [path.name for path in store.checkpoints()] == ["step-00000030", "step-00000032"]


def test_a_run_does_not_end_without_its_last_checkpoint(disk: Path, in_directory: Path, capsys: Any) -> None:
    (disk / "ballast").write_bytes(bytes(1_900_000))
    assert main([*WORDS, "checkpoint.on_write_error=continue"]) == 2
    error = capsys.readouterr().err
    assert "the checkpoint of step 32 cannot be written" in error
    assert [path.name for path in CheckpointStore(run_of(in_directory)).checkpoints()] == ["step-00000005"]
    assert not (run_of(in_directory) / "model.safetensors").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_file_system_that_becomes_read_only(
    undisturbed: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    checkpoints = str(run_of(in_directory) / "checkpoints")

    def protect(step: int) -> None:
        # The checkpoints alone: no file there is open, as the run's log is.
        if step == 15:
            assert mount("--bind", checkpoints, checkpoints)
            assert mount("-o", "remount,ro,bind", checkpoints)

    with monkeypatch.context() as patch:
        around_writes(patch, before=protect)
        try:
            assert main(WORDS) == 2
        finally:
            subprocess.run(["umount", "--lazy", checkpoints], check=True)
    assert_stopped_with(capsys.readouterr().err, "Read-only file system", run_of(in_directory), [5, 10])
    assert main(WORDS) == 0
    assert_same_end(run_of(in_directory), undisturbed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_permission_that_is_lost(capfd: pytest.CaptureFixture) -> None:
    # Outside of pytest's folders, which only their owner can enter.
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(directory, NOBODY, NOBODY)
    checkpoints = run_of(directory) / "checkpoints"

    def be_nobody(rank: int) -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.environ["HOME"] = str(directory)
        patch = pytest.MonkeyPatch()
        around_writes(patch, before=lambda step: step == 15 and checkpoints.chmod(0o500))

    try:
        assert run_forked(WORDS, directory, prepare=be_nobody) == [2]
        assert_stopped_with(capfd.readouterr().err, "Permission denied", run_of(directory), [5, 10])
    finally:
        shutil.rmtree(directory)


def test_a_kill_while_writing_beside_training_changes_nothing(
    undisturbed: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, *MODES["beside training"]]

    def die_within_the_third(rank: int) -> None:
        commit = CheckpointStore.commit

        def killed(self: CheckpointStore, step: int, *arguments: Any) -> Path:
            if step == 15:
                signal.raise_signal(signal.SIGKILL)
            return commit(self, step, *arguments)

        CheckpointStore.commit = killed

    assert run_forked(words, in_directory, prepare=die_within_the_third) == [-signal.SIGKILL]
    assert main(words) == 0
    assert_same_end(run_of(in_directory), undisturbed)
