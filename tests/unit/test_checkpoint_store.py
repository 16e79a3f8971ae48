"""A checkpoint is whole or not there, and a damaged one is passed over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_the_newest_is_found_and_last_points_to_it(store: CheckpointStore) -> None:
    write(store, 5)
    newest = write(store, 10)
    assert store.newest_valid() == newest
    assert (store.directory / "last").resolve() == newest.resolve()


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(
    store: CheckpointStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert find_damage(newest) is not None
    assert store.newest_valid() == older
    assert "step-00000010 is damaged" in caplog.text


def test_pruning_keeps_the_newest_and_the_best(store: CheckpointStore) -> None:
    for step in range(1, 6):
        checkpoint = write(store, step)
        if step == 2:
            store.mark_best(checkpoint)
    store.prune(keep=2)
    assert [path.name for path in store.checkpoints()] == ["step-00000002", "step-00000004", "step-00000005"]
    best = store.best()
    assert best is not None
    assert best.name == "step-00000002"


def test_a_deletion_that_was_cut_short_is_finished(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, 1)
    write(store, 2)

    def cut_short(checkpoint: Path) -> None:
        (checkpoint / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            store.prune(keep=1)
    assert [path.name for path in store.checkpoints()] == ["step-00000002"]
    write(store, 1)
    write(store, 2)
    store.prune(keep=1)
    assert sorted(path.name for path in store.directory.iterdir()) == ["last", "step-00000002"]


def test_a_kill_while_writing_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    code = f"""
from pathlib import Path
from trainer.checkpoint.store import CheckpointStore
store = CheckpointStore(Path({str(tmp_path)!r}))
print("ready", flush=True)
for step in range(1, 100_000):
    store.stage(step).mkdir()
    (store.stage(step) / "state.ckpt").write_bytes(bytes([step % 256]) * 2_000_000)
    store.commit(step, {{}})
    store.prune(3)
"""
    for pause_s in (0.05, 0.11, 0.23):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(pause_s)  # where in a write the kill falls is the point, not a wait for something
            os.kill(writer.pid, signal.SIGKILL)
        store = CheckpointStore(tmp_path)
        assert all(find_damage(checkpoint) is None for checkpoint in store.checkpoints())
