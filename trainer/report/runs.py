"""All runs below a directory, as rows of a table."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.report import facts
from trainer.report.read import RunData, RunReader, Stamps
from trainer.run.files import METRICS_FILE, RECORD_FILE


def version_tag(text: str) -> str:
    """A short text that differs for different ones, as HTTP's ETag is written."""
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:16]}"'


class Runs:
    """All run directories below a root, each read again only where it has changed. Used by several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.readers: dict[str, RunReader] = {}
        self.cached_rows: dict[str, tuple[Stamps, dict[str, Any]]] = {}
        self.lock = threading.Lock()

    def names(self) -> list[str]:
        """Paths of the run directories, relative to the root. Links are not followed: they may lead out of it."""
        found = []
        for folder, folders, files in os.walk(self.root):
            if RECORD_FILE in files:
                found.append(os.path.relpath(folder, self.root))
                # A run holds no other runs, but it may hold thousands of files.
                folders.clear()
        return sorted(found)

    def version(self, names: Sequence[str]) -> str:
        """What changes with any file of these runs. Raises: KeyError: not one of `names()`."""
        with self.lock:
            known = set(self.names())
            for name in names:
                if name not in known:
                    raise KeyError(name)
            return version_tag(repr([(name, self._reader(name).stamps()) for name in names]))

    def read(self, names: Sequence[str]) -> list[RunData]:
        """Runs by a name that `version` has found. Raises: UserError: a damaged run."""
        with self.lock:
            return [self._reader(name).read(name) for name in names]

    def rows(self) -> list[dict[str, Any]]:
        """A row of the table for each run; a damaged run has the reason in its `problem`."""
        with self.lock:
            return [self._row(name) for name in self.names()]

    def _reader(self, name: str) -> RunReader:
        return self.readers.setdefault(name, RunReader(self.root / name))

    def _row(self, name: str) -> dict[str, Any]:
        stamps = self._reader(name).stamps()
        if name not in self.cached_rows or self.cached_rows[name][0] != stamps:
            self.cached_rows[name] = stamps, self._new_row(name)
        return self.cached_rows[name][1]

    def _new_row(self, name: str) -> dict[str, Any]:
        try:
            run = self._reader(name).read(name)
        except UserError as error:
            return {"run": name, "status": "damaged", "problem": error.lines[0]}
        chosen, loss = facts.best(run), facts.train_loss(run)
        config = {group: facts.group_name(run, group) for group in ("task", "model", "data")}
        return {
            "run": name,
            "status": run.record["status"],
            **config,
            "step": run.last_step,
            "best": _finite(chosen[0] if chosen else None),
            "monitor": run.monitor[0],
            "loss": _finite(loss[1] if loss else None),
            "samples_per_s": _finite(facts.median(run, "perf/samples_per_s")),
            "start": run.attempts[-1].get("start") if run.attempts else None,
            "written": _written(run.directory),
        }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and abs(value) < float("inf") else None


def _written(run_dir: Path) -> float:
    """When the run last logged or recorded something, in seconds since 1970."""
    files = [run_dir / name for name in (METRICS_FILE, RECORD_FILE)]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
