"""Checkpoint directories: written atomically, described by a manifest, verified before use."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint.retention import Retention
from trainer.run.files import CHECKPOINTS_DIR, MANIFEST_FILE, STATE_FILE, fsync_path, read_json, write_json

Digest = dict[str, Any]


class CheckpointStore:
    """step-00001200/ each with manifest.json (sha256 and size of every file, step, world, metrics); `last`, `best`.

    A checkpoint is staged under a hidden name beside its place, flushed to disk, and renamed: a directory whose name
    begins with "step-" is complete. It is valid if its files match its manifest, else damaged. The links `last` and
    `best` are for people; the engine finds checkpoints by their manifests.
    """

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / CHECKPOINTS_DIR
        # Hashing takes a second a gigabyte: each checkpoint is read once in a process.
        self.valid: dict[str, bool] = {}

    def stage(self, step: int) -> Path:
        """The directory to write the files of a checkpoint to before `commit`."""
        return self.directory / f".step-{step:08d}"

    def path(self, step: int) -> Path:
        """The directory of a committed checkpoint."""
        return self.directory / f"step-{step:08d}"

    def commit(self, step: int, facts: Mapping[str, Any], flushed: Mapping[str, Digest] | None = None) -> Path:
        """Flush a staged checkpoint, write its manifest and rename it.

        Args: flushed: files that their ranks have flushed and hashed, by path. Returns: its directory.
        """
        staged, final = self.stage(step), self.path(step)
        names = {str(path.relative_to(staged)): path for path in sorted(staged.rglob("*")) if path.is_file()}
        files = {name: (flushed or {}).get(name) or digest(path) for name, path in names.items()}
        write_json(staged / MANIFEST_FILE, {"step": step, **facts, "files": files})
        for folder in (staged, *(p for p in staged.rglob("*") if p.is_dir())):
            fsync_path(folder)
        if os.path.lexists(final):
            self._delete(final)
        staged.rename(final)
        fsync_path(self.directory)
        self.valid[final.name] = True
        self.link("last", final)
        return final

    def checkpoints(self) -> list[Path]:
        """All committed checkpoints, valid or damaged, oldest first."""
        return sorted(self.directory.glob("step-*"))

    def newest_valid(self) -> tuple[Path | None, dict[Path, str]]:
        """Returns: (the newest valid checkpoint, the damaged ones that are newer, each with what is wrong)."""
        damaged: dict[Path, str] = {}
        for checkpoint in reversed(self.checkpoints()):
            damage = find_damage(checkpoint)
            self.valid[checkpoint.name] = damage is None
            if damage is None:
                return checkpoint, damaged
            damaged[checkpoint] = damage
        return None, damaged

    def prune(self, retention: Retention, best_steps: Sequence[int] = ()) -> None:
        """Delete the checkpoints that are not kept, and what an interrupted write has left.

        Call it after `commit`. Damaged checkpoints do not count, and go too.
        """
        checkpoints = self.checkpoints()
        valid = [checkpoint for checkpoint in checkpoints if self._is_valid(checkpoint)]
        manifests = {manifest["step"]: manifest for manifest in map(read_manifest, valid)}
        kept = {self.path(step) for step in retention.kept(manifests, best_steps)}
        for checkpoint in checkpoints:
            if checkpoint not in kept:
                self._delete(checkpoint)
        for leftover in self.directory.glob(".step-*"):
            _remove(leftover)

    def link(self, name: str, target: Path) -> None:
        """Point the link `last` or `best` at a checkpoint, atomically."""
        staged, place = self.directory / f".{name}", self.directory / name
        staged.unlink(missing_ok=True)
        staged.symlink_to(target.name)
        if place.is_dir() and not place.is_symlink():  # of a run that was copied with what its links point to
            shutil.rmtree(place)
        staged.replace(place)

    def _is_valid(self, checkpoint: Path) -> bool:
        if checkpoint.name not in self.valid:
            self.valid[checkpoint.name] = find_damage(checkpoint) is None
        return self.valid[checkpoint.name]

    def _delete(self, checkpoint: Path) -> None:
        # Under a hidden name first: deletion goes file by file, and an interrupted one must not leave a "step-".
        hidden = checkpoint.with_name(f".{checkpoint.name}.deleted")
        if os.path.lexists(hidden):  # of an interrupted deletion, where the run has reached that step again
            _remove(hidden)
        checkpoint.rename(hidden)
        _remove(hidden)


def _remove(path: Path) -> None:
    """Remove a checkpoint's directory, or what stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read manifest.json of a valid checkpoint."""
    return read_json(checkpoint / MANIFEST_FILE)


def find_damage(checkpoint: Path) -> str | None:
    """What differs from the manifest, as a phrase; None where the checkpoint is valid."""
    if (checkpoint / MANIFEST_FILE).exists() and not (checkpoint / MANIFEST_FILE).is_file():
        # Reading a pipe would wait for ever.
        return f"{MANIFEST_FILE} cannot be read: it is no file"
    try:
        manifest: Any = read_manifest(checkpoint)
    except (OSError, ValueError) as error:
        return f"{MANIFEST_FILE} cannot be read: {error}"
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        return f"{MANIFEST_FILE} lists no files"
    if STATE_FILE not in files:
        return f"{MANIFEST_FILE} does not list {STATE_FILE}"
    numbers = [manifest.get(name, 0) for name in ("step", "metrics_bytes", "best_step")]
    if not all(number is None or (isinstance(number, int) and number >= 0) for number in numbers):
        return f"{MANIFEST_FILE} has a step or a size that is no number"
    if checkpoint.name != f"step-{manifest.get('step')!s:0>8}":
        return f"{MANIFEST_FILE} is of step {manifest.get('step')}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.resolve().is_relative_to(checkpoint.resolve()):
            return f"{MANIFEST_FILE} names {name}, outside of the checkpoint"
        if not isinstance(expected, dict) or not {"size", "sha256"} <= expected.keys():
            return f"{MANIFEST_FILE} has no size and checksum of {name}"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if digest(path)["sha256"] != expected["sha256"]:
            return f"{name} has another checksum"
    return None


def digest(path: Path) -> Digest:
    """Flush a file to disk. Returns: its sha256 and size in bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}
