"""What is computed from data once and kept on disk for later runs."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from trainer.errors import UserError
from trainer.run.files import fsync_path


def cache_root() -> Path:
    """Where caches stand: $TRAINER_CACHE, else ~/.cache/trainer."""
    return Path(os.environ.get("TRAINER_CACHE") or Path.home() / ".cache" / "trainer").expanduser()


def cache_key(*parts: object) -> str:
    """A name of 16 hex digits for what follows from the parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def build_once(
    kind: str, key: str, build: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.exists
) -> Path:
    """The folder <cache>/<kind>/<key>, filled by `build` if it is not there yet, or not whole.

    One process builds while the others wait, and the folder appears under its name only when all of it is on disk, so
    a process that dies half-way leaves nothing behind that is taken for a result.

    Raises: UserError: the cache cannot be written.
    """
    folder = cache_root() / kind / key
    if not is_whole(folder):
        try:
            _build_locked(folder, build, is_whole)
        except OSError as error:
            advice = "name a directory that can be written with TRAINER_CACHE=DIRECTORY"
            raise UserError(f"the cache {folder.parent} cannot be written: {error}", advice) from error
    return folder


def _build_locked(folder: Path, build: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> None:
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if is_whole(folder):
            return
        half = folder.with_suffix(".building")
        for leftover in (half, folder):  # of a process that was killed, or damaged since
            shutil.rmtree(leftover, ignore_errors=True)
        half.mkdir()
        try:
            build(half)
            for path in (*half.rglob("*"), half):
                fsync_path(path)
            half.rename(folder)
            fsync_path(folder.parent)
        finally:
            shutil.rmtree(half, ignore_errors=True)
