"""Results computed from data once and kept on disk for later runs."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from trainer.errors import UserError
from trainer.run.files import fsync_path


def cache_root() -> Path:
    """The directory of all caches: $TRAINER_CACHE, else ~/.cache/trainer."""
    return Path(os.environ.get("TRAINER_CACHE") or Path.home() / ".cache" / "trainer").expanduser()


def cache_key(*parts: object) -> str:
    """A name of 16 hex digits for a result that depends on the parts alone."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def build_once(
    kind: str, key: str, build: Callable[[Path], None], is_valid: Callable[[Path], bool] = Path.exists
) -> Path:
    """The folder <cache>/<kind>/<key>, filled by `build` if it is missing or damaged.

    One process builds while the others wait. The folder appears under its name only when it is complete and on disk, so
    a killed process leaves no partial result.

    Raises: UserError: the cache cannot be written.
    """
    folder = cache_root() / kind / key
    if not is_valid(folder):
        try:
            _build_locked(folder, build, is_valid)
        except OSError as error:
            advice = "name a directory that can be written with TRAINER_CACHE=DIRECTORY"
            raise UserError(f"the cache {folder.parent} cannot be written: {error}", advice) from error
    return folder


def _build_locked(folder: Path, build: Callable[[Path], None], is_valid: Callable[[Path], bool]) -> None:
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if is_valid(folder):
            return
        staging = folder.with_suffix(".building")
        for leftover in (staging, folder):  # of a killed process, or damaged since
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir()
        try:
            build(staging)
            for path in (*staging.rglob("*"), staging):
                fsync_path(path)
            staging.rename(folder)
            fsync_path(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
