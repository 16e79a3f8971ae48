"""Results computed from data once and kept on disk for later runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from trainer.errors import UserError
from trainer.run.files import fsync_path


def cache_root() -> Path:
    """The directory of all caches: $TRAINER_CACHE, else ~/.cache/trainer."""
    return Path(os.environ.get("TRAINER_CACHE") or Path.home() / ".cache" / "trainer").expanduser()


def private_cache(kind: str) -> Path:
    """The directory of one kind of results, made for this user alone where it is missing.

    Raises: UserError: other users can write to it, who could put results of their own there. OSError.
    """
    folder = cache_root()
    folder.parent.mkdir(parents=True, exist_ok=True)
    for each in (folder, folder / kind):
        each.mkdir(mode=0o700, exist_ok=True)
        problem = foreign_access(each)
        if problem is not None:
            advice = f"chmod go-w {each}, or name a directory of your own with TRAINER_CACHE=DIRECTORY"
            raise UserError(f"the cache {each} {problem}, and what is read from it would be trusted", advice)
    return folder / kind


def foreign_access(folder: Path) -> str | None:
    """How other users than this one and root can change a directory, as a phrase; None where they cannot.

    A group is trusted that is this user's own one, as with Debian's umask of 002.
    """
    status = folder.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to the user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by all users"
    if status.st_mode & stat.S_IWGRP and status.st_gid not in (os.getegid(), 0):
        return f"can be written by the group {status.st_gid}"
    return None


def cache_key(*parts: object) -> str:
    """A name of 16 hex digits for a result that depends on the parts alone."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def build_once(
    kind: str, key: str, build: Callable[[Path], None], is_valid: Callable[[Path], bool] = Path.exists
) -> Path:
    """The folder <cache>/<kind>/<key>, filled by `build` if it is missing or damaged.

    One process builds while the others wait. The folder appears under its name only when it is complete and on disk, so
    a killed process leaves no partial result.

    A folder of that name that another user has made is built again.

    Raises: UserError: the cache cannot be written, or others can write to it.
    """
    try:
        folder = private_cache(kind) / key
        if not _is_ours(folder, is_valid):
            _build_locked(folder, build, is_valid)
    except OSError as error:
        advice = "name a directory that can be written with TRAINER_CACHE=DIRECTORY"
        raise UserError(f"the cache {cache_root() / kind} cannot be written: {error}", advice) from error
    return folder


def _is_ours(folder: Path, is_valid: Callable[[Path], bool]) -> bool:
    return folder.exists() and not folder.is_symlink() and foreign_access(folder) is None and is_valid(folder)


def _build_locked(folder: Path, build: Callable[[Path], None], is_valid: Callable[[Path], bool]) -> None:
    from filelock import FileLock

    with FileLock(folder.with_suffix(".lock")):
        if _is_ours(folder, is_valid):
            return
        staging = folder.with_suffix(".building")
        for leftover in (staging, folder):  # of a killed process, or damaged since
            if leftover.is_symlink():
                leftover.unlink()
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir(mode=0o700)
        try:
            build(staging)
            for path in (*staging.rglob("*"), staging):
                fsync_path(path)
            staging.rename(folder)
            fsync_path(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
