"""What is computed from data once and kept on disk for later runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from trainer.errors import UserError


def cache_root() -> Path:
    """Where caches stand: $TRAINER_CACHE, else ~/.cache/trainer."""
    return Path(os.environ.get("TRAINER_CACHE") or Path.home() / ".cache" / "trainer").expanduser()


def cache_key(*parts: object) -> str:
    """A name of 16 hex digits for what follows from the parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def build_once(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder <cache>/<kind>/<key>, filled by `build` if it is not there yet.

    One process builds while the others wait, and the folder appears under its name only when it is complete, so a
    process that dies half-way leaves nothing behind that is taken for a result.

    Raises: UserError: the cache cannot be written.
    """
    folder = cache_root() / kind / key
    if not folder.exists():
        try:
            _build_locked(folder, build)
        except OSError as error:
            advice = "name a directory that can be written with TRAINER_CACHE=DIRECTORY"
            raise UserError(f"the cache {folder.parent} cannot be written: {error}", advice) from error
    return folder


def _build_locked(folder: Path, build: Callable[[Path], None]) -> None:
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists():
            return
        half = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            build(half)
            half.rename(folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
