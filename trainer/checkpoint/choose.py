"""Checkpoints by the names that users give them: best, last, step-N, or a path. What is found is verified."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.checkpoint.store import CheckpointStore, find_damage
from trainer.errors import UserError, nearest
from trainer.run.files import MANIFEST_FILE, STATE_FILE


def find_checkpoint(name: str, run_dir: Path | None = None) -> Path:
    """A checkpoint's directory, or a single file of weights.

    Args: name: best, last or step-N of the run in `run_dir`, or a path. Step-40 and step-00000040 are the same.
    Raises: UserError: there is no such checkpoint, or it is damaged.
    """
    path = _named(name, run_dir) if run_dir is not None else Path(name)
    if not path.exists():
        raise UserError(f"checkpoint={path}: no such file or directory")
    checkpoint = path.parent if path.name == STATE_FILE and (path.parent / MANIFEST_FILE).exists() else path
    # `best` and `last` are links, and a checkpoint's name is part of what is verified.
    checkpoint = checkpoint.resolve()
    damage = find_damage(checkpoint) if checkpoint.is_dir() else None
    if damage is not None:
        raise UserError(f"checkpoint={checkpoint}: damaged ({damage})", "choose another checkpoint of the run")
    return checkpoint


def weights_file(checkpoint: Path) -> Path:
    """The file that holds the weights of what `find_checkpoint` returned."""
    return checkpoint / STATE_FILE if checkpoint.is_dir() else checkpoint


def _named(name: str, run_dir: Path) -> Path:
    store = CheckpointStore(run_dir)
    names = [path.name for path in store.checkpoints()]
    names += [link for link in ("best", "last") if (store.directory / link).exists()]
    step = re.fullmatch(r"step-(\d+)", name)
    padded = f"step-{int(step.group(1)):08d}" if step else name
    if padded in names:
        return store.directory / padded
    if "/" in name or Path(name).exists():
        return Path(name)
    if not names:
        raise UserError(f"checkpoint={name}: {run_dir} has no checkpoint yet")
    raise UserError(f"checkpoint={name}: not in {store.directory}; {nearest(name, names)}")
