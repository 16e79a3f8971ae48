"""Which checkpoints of a run are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Retention:
    """keep_last: number of newest checkpoints. every_h: hours from one that is kept for good to the next; None keeps
    none for good."""

    keep_last: int
    every_h: float | None = None

    def kept(self, manifests: Mapping[int, Mapping[str, Any]], best_steps: Sequence[int]) -> set[int]:
        """The steps to keep.

        Args: manifests: by step, of the valid checkpoints. best_steps: of the best evaluations.
        """
        steps = sorted(manifests)
        return {*steps[-self.keep_last :], *best_steps, *self._for_good(manifests)}

    def _for_good(self, manifests: Mapping[int, Mapping[str, Any]]) -> list[int]:
        """Steps that are kept for good, from the manifests alone, so that a resumed run keeps the same ones."""
        kept: list[int] = []
        last: datetime | None = None
        for step in sorted(manifests) if self.every_h is not None else ():
            # A checkpoint that was written before they had a time.
            if "time" not in manifests[step]:
                continue
            time = datetime.fromisoformat(manifests[step]["time"])
            if last is None or (time - last).total_seconds() >= 3600 * (self.every_h or 0.0):
                kept.append(step)
                last = time
        return kept
