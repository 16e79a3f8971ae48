"""Results computed from data once and kept on disk for later runs, of this user alone."""

from __future__ import annotations

import grp
import hashlib
import json
import logging
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.run.files import fsync_path, write_json

log = logging.getLogger(__name__)
# In each folder that was built: of every file its hash, and what changes when it is written to.
BUILT_FILE = "built.json"
COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
DEFAULT_COMPILER_CACHE = Path(tempfile.gettempdir(), "torchinductor_")  # and the user's name


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
            advice = (
                "remove it, since others may have written to it, or name one of your own with TRAINER_CACHE=DIRECTORY"
            )
            raise UserError(f"the cache {each} {problem}, and what is read from it would be trusted", advice)
    return folder / kind


def use_private_compiler_cache() -> None:
    """Let torch.compile keep its code where only this user can write.

    Its own default is a folder in /tmp with a name that others can guess and make first; it runs what is in there. It
    sets the variable to that folder when it is imported.

    Raises: UserError: as of private_cache, or the cache cannot be written.
    """
    chosen = Path(os.environ.get(COMPILER_CACHE) or DEFAULT_COMPILER_CACHE)
    if chosen.parent != DEFAULT_COMPILER_CACHE.parent or not chosen.name.startswith(DEFAULT_COMPILER_CACHE.name):
        return
    try:
        os.environ[COMPILER_CACHE] = str(private_cache("compiled"))
    except OSError as error:
        raise _unwritable("compiled", error) from error


def foreign_access(path: Path) -> str | None:
    """How other users than this one and root can change a file or directory, as a phrase; None where they cannot."""
    link, status = path.lstat(), path.stat()
    for owner in (link.st_uid, status.st_uid):
        if owner not in (os.geteuid(), 0):
            return f"belongs to the user {owner}"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by all users"
    if status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid):
        return f"can be written by the group {status.st_gid}"
    return None


def _is_own_group(gid: int) -> bool:
    """Whether nobody else is in a group: root's, and this user's own one, as with Debian's umask of 002."""
    if gid == 0:
        return True
    try:
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}


def cache_key(*parts: object) -> str:
    """A name of 16 hex digits for a result that depends on the parts alone."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def build_once(
    kind: str, key: str, build: Callable[[Path], None], is_valid: Callable[[Path], bool] = Path.exists
) -> Path:
    """The folder <cache>/<kind>/<key>, filled by `build` if it is missing or damaged.

    One process builds while the others wait. The folder appears under its name only when it is complete and on disk, so
    a killed process leaves no partial result.

    A folder of that name, or a file in it, that another user has made or can write to is built again. So is one whose
    content is not what was built. Files are hashed when they are built, and again only where their times have changed.

    Raises: UserError: the cache cannot be written, or others can write to it.
    """
    try:
        folder = private_cache(kind) / key
        if not _is_as_left(folder, is_valid):
            _build_locked(folder, build, is_valid)
    except OSError as error:
        raise _unwritable(kind, error) from error
    return folder


def _unwritable(kind: str, error: OSError) -> UserError:
    advice = "name a directory that can be written with TRAINER_CACHE=DIRECTORY"
    return UserError(f"the cache {cache_root() / kind} cannot be written: {error}", advice)


def _is_as_left(folder: Path, is_valid: Callable[[Path], bool]) -> bool:
    """Whether a folder is this user's, and nothing has written to its files since they were last hashed."""
    built = _built_files(folder)
    return built is not None and _stamps(folder) == _part(built, "stamp") and is_valid(folder)


def _has_content_of_build(folder: Path, is_valid: Callable[[Path], bool]) -> bool:
    """The same where the times of its files have changed: it was copied, or somebody has written to it."""
    built = _built_files(folder)
    return built is not None and _hashes(folder) == _part(built, "sha256") and is_valid(folder)


def _built_files(folder: Path) -> dict[str, Any] | None:
    """What the folder says about each of its files; None where it is not one that only this user could have built."""
    try:
        if folder.is_symlink() or foreign_access(folder) is not None:
            return None
        paths = list(folder.rglob("*"))
        if any(path.is_symlink() or foreign_access(path) is not None for path in paths):
            return None
        built = json.loads((folder / BUILT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return built if isinstance(built, dict) and all(isinstance(entry, dict) for entry in built.values()) else None


def _part(built: dict[str, Any], name: str) -> dict[str, Any]:
    return {file: entry.get(name) for file, entry in built.items()}


def _stamps(folder: Path) -> dict[str, Any]:
    # Only root can set the last of them.
    stats = {name: path.stat() for name, path in _files(folder)}
    return {name: [each.st_size, each.st_mtime_ns, each.st_ctime_ns] for name, each in stats.items()}


def _hashes(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, path in _files(folder):
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name != BUILT_FILE:
            yield name, path


def _write_built(folder: Path) -> None:
    stamps, hashes = _stamps(folder), _hashes(folder)
    write_json(folder / BUILT_FILE, {name: {"sha256": hashes[name], "stamp": stamps[name]} for name in stamps})


def _build_locked(folder: Path, build: Callable[[Path], None], is_valid: Callable[[Path], bool]) -> None:
    from filelock import FileLock

    with FileLock(folder.with_suffix(".lock")):
        if _is_as_left(folder, is_valid):
            return
        if _has_content_of_build(folder, is_valid):
            _write_built(folder)
            return
        if folder.is_symlink() or folder.exists():
            log.warning("the cache %s is not as this user has built it; it is built again", folder)
        staging = folder.with_suffix(".building")
        for leftover in (staging, folder):  # of a killed process, or damaged since
            if leftover.is_symlink():
                leftover.unlink()
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir(mode=0o700)
        try:
            build(staging)
            for path in (*staging.rglob("*"), staging):
                path.chmod(path.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
                fsync_path(path)
            _write_built(staging)
            staging.rename(folder)
            fsync_path(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
