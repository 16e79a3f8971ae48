"""A checkpoint is complete or not there, and a damaged one is never used."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from watching import wait_until

from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore, find_damage


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    (tmp_path / "checkpoints").mkdir()
    return CheckpointStore(tmp_path)


def write(store: CheckpointStore, step: int, content: bytes = b"weights") -> Path:
    staged = store.stage(step)
    staged.mkdir()
    (staged / "state.ckpt").write_bytes(content)
    return store.commit(step, {"metrics": {}})


def names(store: CheckpointStore) -> list[str]:
    return [path.name for path in store.checkpoints()]


def test_the_newest_is_found_and_last_points_to_it(store: CheckpointStore) -> None:
    write(store, 5)
    newest = write(store, 10)
    assert store.newest_valid() == (newest, {})
    assert (store.directory / "last").resolve() == newest.resolve()


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(store: CheckpointStore, damage: str) -> None:
    older, newest = write(store, 5), write(store, 10)
    state = newest / "state.ckpt"
    if damage == "flip":
        state.write_bytes(b"Weights")
    elif damage == "cut":
        state.write_bytes(b"weigh")
    elif damage == "delete":
        state.unlink()
    else:
        (newest / "manifest.json").write_text("{")
    found = find_damage(newest)
    assert found is not None
    assert store.newest_valid() == (older, {newest: found})


@pytest.mark.parametrize(
    "change",
    [
        [],
        {"files": []},
        {"files": {}},
        {"files": {"other": {"size": 1, "sha256": ""}}},
        {"files": {"state.ckpt": None}},
        {"step": 11},
        {"step": None},
    ],
    ids=json.dumps,
)
def test_a_manifest_that_says_something_else_is_damage(store: CheckpointStore, change: Any) -> None:
    checkpoint = write(store, 10)
    assert find_damage(checkpoint) is None
    manifest = checkpoint / "manifest.json"
    changed = {**json.loads(manifest.read_text()), **change} if isinstance(change, dict) else change
    manifest.write_text(json.dumps(changed))
    damage = find_damage(checkpoint)
    assert damage is not None and "manifest.json" in damage


def test_pruning_keeps_the_newest_and_the_best(store: CheckpointStore) -> None:
    for step in range(1, 6):
        write(store, step)
    store.prune(Retention(2), [2])
    assert names(store) == ["step-00000002", "step-00000004", "step-00000005"]


def test_damaged_checkpoints_take_no_place_of_valid_ones(tmp_path: Path, store: CheckpointStore) -> None:
    """200 and 300 are damaged, the run resumes from 100 and saves 150."""
    for step in (100, 200, 300):
        write(store, step)
    for step in (200, 300):
        (store.path(step) / "state.ckpt").write_bytes(b"Weights")
    resumed = CheckpointStore(tmp_path)
    assert resumed.newest_valid()[0] == resumed.path(100)
    write(resumed, 150)
    resumed.prune(Retention(2))
    assert names(resumed) == ["step-00000100", "step-00000150"]
    assert (resumed.directory / "last").resolve() == resumed.path(150).resolve()


def test_an_interrupted_deletion_is_completed(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, 1)
    write(store, 2)

    def interrupted(checkpoint: Path) -> None:
        (checkpoint / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.prune(Retention(1))
    assert names(store) == ["step-00000002"]
    write(store, 1)
    write(store, 2)
    store.prune(Retention(1))
    assert sorted(path.name for path in store.directory.iterdir()) == ["last", "step-00000002"]


# Each of these calls is a place where a write can be cut short: the third checkpoint is being written.
@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.rename", "pathlib.Path.symlink_to", "shutil.rmtree"])
def test_a_kill_while_writing_leaves_only_valid_checkpoints(tmp_path: Path, call: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    code = f"""
import os, pathlib, shutil, signal
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore
store = CheckpointStore(pathlib.Path({str(tmp_path)!r}))
def write(step):
    store.stage(step).mkdir()
    (store.stage(step) / "state.ckpt").write_bytes(bytes([step]) * 2_000)
    store.commit(step, {{}})
    store.prune(Retention(1))
write(1)
write(2)
def killed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
{call} = killed
write(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = CheckpointStore(tmp_path)
    assert names(store)
    assert [find_damage(checkpoint) for checkpoint in store.checkpoints()] == [None] * len(names(store))
    assert (store.directory / "last").exists()


def test_a_copied_run_whose_links_have_become_folders_goes_on(store: CheckpointStore) -> None:
    write(store, 5)
    (store.directory / "last").unlink()
    shutil.copytree(store.path(5), store.directory / "last")
    newest = write(store, 10)
    assert (store.directory / "last").readlink() == Path(newest.name)


def save_until_killed(directory: Path) -> NoReturn:
    """Save one checkpoint after the other, each with another content."""
    try:
        save_in_a_loop(directory)
    finally:
        os._exit(1)


def save_in_a_loop(directory: Path) -> None:
    store = CheckpointStore(directory)
    newest, _ = store.newest_valid()
    first = int(newest.name.removeprefix("step-")) + 1 if newest else 1
    for step in range(first, first + 100_000):
        # As CheckpointWriter does where an earlier attempt has left something.
        shutil.rmtree(store.stage(step), ignore_errors=True)
        store.stage(step).mkdir(parents=True)
        (store.stage(step) / "state.ckpt").write_bytes(step.to_bytes(4, "big") * 50_000)
        store.commit(step, {"metrics_bytes": 0, "best_step": None})
        store.prune(Retention(2))


# Of 500 kills, each also finds what the ones before have left.
@pytest.mark.parametrize("kills", [25, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_kills_while_saving_damage_nothing(kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path("/dev/shm")
    if other.is_dir() and other.stat().st_dev != tmp_path.stat().st_dev:
        # A move out of there would be a copy, which a kill cuts short.
        monkeypatch.setenv("TMPDIR", str(other))
    store, draw, interrupted, steps = CheckpointStore(tmp_path), random.Random(0), 0, set[int]()
    for _ in range(kills):
        pid = os.fork()
        if pid == 0:
            save_until_killed(tmp_path)
        wait_until(lambda: (store.directory / "last").exists(), 60)
        time.sleep(draw.uniform(0, 0.04))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        interrupted += any(store.directory.glob(".step-*"))
        assert [find_damage(checkpoint) for checkpoint in store.checkpoints()] == [None] * len(names(store))
        newest, damaged = store.newest_valid()
        assert newest is not None and damaged == {}
        step = int(newest.name.removeprefix("step-"))
        steps.add(step)
        assert (newest / "state.ckpt").read_bytes() == step.to_bytes(4, "big") * 50_000
        assert find_damage((store.directory / "last").resolve()) is None
    # Else the kills would have come between saves.
    assert interrupted > kills / 5
    assert len(steps) > kills / 3, "most attempts save something after what the ones before have left"
