"""A new export in the place of the one that is served: loaded and tried beside it, then swapped."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from trainer.errors import UserError
from trainer.run.files import MANIFEST_FILE
from trainer.serve.model import ServedModel, load_served
from trainer.serve.service import Service

LOG = logging.getLogger("trainer.serve")
Signature = frozenset[tuple[str, int, int, int]]


def signature(folder: Path) -> Signature | None:
    """Which files are in a folder: names, inodes, sizes, times of change. None while there is no manifest."""
    try:
        found = frozenset(
            (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
            for path in folder.rglob("*")
            for status in [path.stat()]
        )
    except OSError:  # it is being replaced
        return None
    return found if any(Path(entry[0]).name == MANIFEST_FILE for entry in found) else None


async def watch(service: Service, folder: Path, served: Signature | None) -> None:
    """Look for another export until cancelled. Args: served: of the files that the served model was loaded from."""
    tried = previous = served
    while True:
        await asyncio.sleep(service.config.reload_every_s)
        seen = await asyncio.to_thread(signature, folder)
        # Two equal looks: a folder that is being copied file by file would be taken for a broken one.
        if seen is not None and seen != tried and seen == previous:
            tried = seen
            await asyncio.to_thread(reload, service, folder, seen)
        previous = seen


def reload(service: Service, folder: Path, seen: Signature) -> None:
    """Serve what the folder holds, if it is as good as it says; otherwise go on as before.

    Requests that have begun keep the model that prepared them.
    """
    try:
        candidate = load_served(folder, service.config)
        if signature(folder) != seen:
            raise UserError(f"{folder}: changed while it was loaded")
        if service.model is not None:
            _check_same_interface(service.model, candidate)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises; the old model is served on
        reason = "; ".join(error.lines) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        service.metrics.reloads.labels("refused").inc()
        LOG.error("the new export is not served, the old one stays: %s", reason)
        return
    service.model = candidate
    service.metrics.reloads.labels("served").inc()
    LOG.info("a new export is served: created %s", candidate.exported.manifest.created)


def _check_same_interface(old: ServedModel, new: ServedModel) -> None:
    """Raises: UserError: clients of the old one would not know what to do with the new one."""
    for name, before, after in (
        ("task", old.exported.manifest.task, new.exported.manifest.task),
        ("format", old.exported.manifest.format, new.exported.manifest.format),
        ("kind of input", old.kind, new.kind),
        ("kind of output", old.exported.processing.outputs.kind, new.exported.processing.outputs.kind),
    ):
        if before != after:
            raise UserError(f"{new.folder}: its {name} is {after}, and that of the served one {before}")
