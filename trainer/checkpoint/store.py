"""Directories of checkpoints that are either whole or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.run.files import CHECKPOINTS_DIR, MANIFEST_FILE, fsync_path, write_json

log = logging.getLogger(__name__)


class CheckpointStore:
    """step-00001200/ each with manifest.json (sha256 and size of every file, step, world, metrics); `last`, `best`.

    A checkpoint is staged under a hidden name beside its place, flushed to disk, and renamed: a directory whose name
    begins with "step-" is complete. Before one is used, its files are compared with its manifest.
    """

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / CHECKPOINTS_DIR

    def stage(self, step: int) -> Path:
        """Where the files of a checkpoint are to be written before `commit`."""
        return self.directory / f".step-{step:08d}"

    def commit(self, step: int, facts: Mapping[str, Any]) -> Path:
        """Make a staged checkpoint count. Returns: its directory."""
        staged, final = self.stage(step), self.directory / f"step-{step:08d}"
        files = {str(p.relative_to(staged)): _digest(p) for p in sorted(staged.rglob("*")) if p.is_file()}
        write_json(staged / MANIFEST_FILE, {"step": step, **facts, "files": files})
        for folder in (staged, *(p for p in staged.rglob("*") if p.is_dir())):
            fsync_path(folder)
        if final.exists():
            self._delete(final)
        staged.rename(final)
        fsync_path(self.directory)
        self._link("last", final)
        return final

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.directory.glob("step-*"))

    def newest_valid(self) -> Path | None:
        """The newest checkpoint whose files are as its manifest says; damaged ones are named in the log and passed
        over."""
        for checkpoint in reversed(self.checkpoints()):
            damage = find_damage(checkpoint)
            if damage is None:
                return checkpoint
            log.warning("checkpoint %s is damaged (%s); looking for an older one", checkpoint, damage)
        return None

    def best(self) -> Path | None:
        """The checkpoint with the best monitored metric, if any was evaluated."""
        link = self.directory / "best"
        return link.resolve() if link.exists() else None

    def mark_best(self, checkpoint: Path) -> None:
        """Point `best` at a checkpoint."""
        self._link("best", checkpoint)

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints and the best one, and what an interrupted write has left."""
        best = self.best()
        for checkpoint in self.checkpoints()[:-keep]:
            if checkpoint.resolve() != best:
                self._delete(checkpoint)
        for leftover in self.directory.glob(".step-*"):
            shutil.rmtree(leftover)

    def _delete(self, checkpoint: Path) -> None:
        # Under a hidden name first: deletion goes file by file, and one that is cut short must not leave a "step-".
        hidden = checkpoint.with_name(f".{checkpoint.name}.deleted")
        if hidden.exists():  # of one that was cut short, where the run has come to that step again
            shutil.rmtree(hidden)
        checkpoint.rename(hidden)
        shutil.rmtree(hidden)

    def _link(self, name: str, target: Path) -> None:
        staged = self.directory / f".{name}"
        staged.unlink(missing_ok=True)
        staged.symlink_to(target.name)
        staged.replace(self.directory / name)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """manifest.json of a checkpoint."""
    return json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))


def find_damage(checkpoint: Path) -> str | None:
    """What differs from the manifest, as a phrase; None where the checkpoint is whole."""
    try:
        files = read_manifest(checkpoint)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"manifest.json: {error}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if _digest(path)["sha256"] != expected["sha256"]:
            return f"{name} has another checksum"
    return None


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}
