"""Damage of every kind to the newest checkpoint: it is found, named on the terminal, and the newest good one taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint.resume import choose_checkpoint
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore
from trainer.run.files import write_json

STATE, MANIFEST = "state.ckpt", "manifest.json"


def flip_a_bit(checkpoint: Path) -> None:
    content = bytearray((checkpoint / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / STATE).write_bytes(content)


def cut(name: str, num_bytes: int | None) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[:num_bytes])

    return damage


def zero_a_page(checkpoint: Path) -> None:
    with (checkpoint / STATE).open("r+b") as file:
        file.seek(512)
        file.write(bytes(512))


def lengthen(checkpoint: Path) -> None:
    with (checkpoint / STATE).open("ab") as file:
        file.write(b"\0")


def remove(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def replace_by(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        (checkpoint / name).unlink()
        make(checkpoint / name)

    return damage


def take_from_the_older(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: shutil.copy(checkpoint.parent / "step-00000010" / name, checkpoint / name)


def write_manifest(content: bytes) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / MANIFEST).write_bytes(content) and None


def change_manifest(**values: Any) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        write_json(checkpoint / MANIFEST, {**manifest, **values})

    return damage


def change_file_entry(name: str = STATE, **values: Any) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        entry = manifest["files"].pop(STATE)
        write_json(checkpoint / MANIFEST, {**manifest, "files": {name: {**entry, **values}}})

    return damage


def rename(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name("step-00000030"))


def be_a_file(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.write_text("")


def be_a_broken_link(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.symlink_to("nowhere")


# Each kind and a part of what is said of it.
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit": (flip_a_bit, "another checksum"),
    "zeros": (zero_a_page, "another checksum"),
    "last byte": (cut(STATE, -1), "bytes instead of"),
    "half": (cut(STATE, 700), "bytes instead of"),
    "empty": (cut(STATE, 0), "0 bytes instead of"),
    "longer": (lengthen, "bytes instead of"),
    "no state": (remove(STATE), "is missing"),
    "state of another": (take_from_the_older(STATE), "another checksum"),
    "state is a folder": (replace_by(STATE, Path.mkdir), "is missing"),
    "state is a pipe": (replace_by(STATE, os.mkfifo), "is missing"),
    "state is a link": (replace_by(STATE, lambda path: path.symlink_to("/etc/hostname")), "outside of the checkpoint"),
    "state links nowhere": (replace_by(STATE, lambda path: path.symlink_to("nowhere")), "is missing"),
    "no manifest": (remove(MANIFEST), "cannot be read"),
    "manifest is a folder": (replace_by(MANIFEST, Path.mkdir), "cannot be read"),
    "manifest is a pipe": (replace_by(MANIFEST, os.mkfifo), "cannot be read"),
    "manifest is empty": (cut(MANIFEST, 0), "cannot be read"),
    "manifest is cut": (cut(MANIFEST, -10), "cannot be read"),
    "manifest of another": (take_from_the_older(MANIFEST), "is of step 10"),
    "manifest is no text": (write_manifest(b"\xff\xfe\x00"), "cannot be read"),
    "manifest is a list": (write_manifest(b"[]"), "lists no files"),
    "manifest is deep": (write_manifest(b"[" * 100_000), "cannot be read"),
    "no list of files": (change_manifest(files=[]), "lists no files"),
    "another step": (change_manifest(step=21), "is of step 21"),
    "no step": (change_manifest(step=None), "is of step None"),
    "a negative size of metrics": (change_manifest(metrics_bytes=-1), "no number"),
    "a best step that is text": (change_manifest(best_step="10"), "no number"),
    "another hash": (change_file_entry(sha256="0" * 64), "another checksum"),
    "no hash": (change_file_entry(sha256=None), "another checksum"),
    "a file outside": (change_file_entry(name="../step-00000010/state.ckpt"), "does not list state.ckpt"),
    "another name": (rename, "is of step 20"),
    "a file": (be_a_file, "cannot be read"),
    "a link to nowhere": (be_a_broken_link, "cannot be read"),
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with checkpoints of the steps 10 and 20."""
    store = CheckpointStore(tmp_path)
    for step in (10, 20):
        store.stage(step).mkdir(parents=True)
        torch.save({"state_dict": {"weight": torch.full((100,), step)}}, store.stage(step) / STATE)
        store.commit(step, {"metrics_bytes": 0, "best_step": None})
    write_json(tmp_path / "run.json", {"checkpointed": True})
    return tmp_path


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named_and_an_older_checkpoint_taken(
    name: str, run_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    damage, said = DAMAGES[name]
    checkpoints = run_dir / "checkpoints"
    assert choose_checkpoint(run_dir) == checkpoints / "step-00000020"
    assert capsys.readouterr().err == ""
    damage(checkpoints / "step-00000020")
    assert choose_checkpoint(run_dir) == checkpoints / "step-00000010"
    error = capsys.readouterr().err
    assert "step-000000" in error and "is damaged" in error and said in error, error
    assert (checkpoints / "last").resolve().name == "step-00000010"


@pytest.mark.parametrize("name", DAMAGES)
def test_the_next_save_clears_damage_away(name: str, run_dir: Path) -> None:
    damage, _ = DAMAGES[name]
    checkpoints = run_dir / "checkpoints"
    damage(checkpoints / "step-00000020")
    choose_checkpoint(run_dir)
    store = CheckpointStore(run_dir)
    store.stage(20).mkdir(parents=True)
    torch.save({"state_dict": {}}, store.stage(20) / STATE)
    store.commit(20, {"metrics_bytes": 0, "best_step": None})
    store.prune(Retention(2))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["last", "step-00000010", "step-00000020"]
