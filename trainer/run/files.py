"""Files of a run directory: their names, atomic writing, and locks."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from trainer.errors import UserError

CONFIG_FILE = "config.yaml"
RECORD_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
MODEL_FILE = "model.safetensors"
INPUT_SPEC_FILE = "inputs.json"
EVALUATION_FILE = "eval.json"
REPORT_FILE = "report.html"
HF_DIR = "hf"  # the model as transformers loads it
LOGS_DIR = "logs"
WANDB_DIR = "wandb"
PROFILE_DIR = "profile"
EXPORT_DIR = "export"
FAULTS_DIR = "faults"  # pages that explain what went wrong
CHECKPOINTS_DIR = "checkpoints"
STATE_FILE = "state.ckpt"  # of a checkpoint
MANIFEST_FILE = "manifest.json"  # of a checkpoint
LOCK_FILE = ".lock"
# Of a file that is read as a whole: a record of thousands of attempts, each with a diff, is smaller.
MAX_JSON_BYTES = 64 * 2**20


def open_plain(path: Path, flags: int) -> int:
    """A descriptor of a file, for this process alone. Raises: OSError: the file is a symbolic link (ELOOP)."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def refuse_links_outside(run_dir: Path) -> None:
    """A run directory may come from anybody; what is written to it must not land elsewhere.

    Raises: UserError: something in it is a symbolic link that leads out of it, or a pipe or a device, which to read
        would take for ever.
    """
    root = run_dir.resolve()
    for folder, folders, files in os.walk(root):
        paths = [Path(folder, name) for name in (*folders, *files)]
        # W&B alone writes there, to new folders, and links to its log in the user's cache.
        folders[:] = [name for name in folders if Path(folder, name) != root / WANDB_DIR]
        for path in paths:
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue  # of a run that trains meanwhile
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise UserError(f"run={run_dir}: {path.relative_to(root)} is neither a file nor a folder", "remove it")
            if stat.S_ISLNK(mode) and not path.resolve().is_relative_to(root):
                link = f"{path.relative_to(root)} is a symbolic link to {path.readlink()}"
                advice = "files there would be read or overwritten; remove the link, or put a copy in its place"
                raise UserError(f"run={run_dir}: {link}, outside of the run", advice)


def replace_folder(staged: Path, place: Path) -> None:
    """Flush the folder and put it in its place, which may have been taken by an earlier one."""
    for path in (*staged.rglob("*"), staged):
        fsync_path(path)
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    # A folder that is not empty cannot be renamed over; the old one is moved away first and back on failure.
    if place.exists():
        place.rename(old)
    try:
        staged.rename(place)
    except OSError:
        with suppress(FileNotFoundError):
            old.rename(place)
        raise
    fsync_path(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new one, also after a crash of the machine."""
    # Nobody can have put a link where a name is random.
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(open_plain(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    fsync_path(path.parent)


def read_json(path: Path) -> Any:
    """A JSON file that may come from anybody. Raises: OSError. ValueError: it is damaged, too large or too deep."""
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LockHeld(Exception):
    """Another process holds the lock. Args: holder: what it wrote into the file, which may be empty."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def lock_file(path: Path, holder: str, wait: bool = False) -> TextIO:
    """Lock a file for as long as the returned object, or a process that inherits its descriptor, keeps it open.

    The kernel releases a flock when its last holder dies, however it dies.

    Args: holder: written into the file for others to read. wait: block until the lock is free.
    Raises: LockHeld: another process holds it. OSError: the file cannot be opened, or the file system has no locks.
    """
    file = os.fdopen(open_plain(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.seek(0)
        text = file.read().strip()
        file.close()
        raise LockHeld(text) from None
    except OSError:
        file.close()
        raise
    file.truncate(0)
    file.write(holder)
    file.flush()
    return file
