"""profiler=simple: Lightning's times of its hooks."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.profilers import SimpleProfiler


class HookTimes(SimpleProfiler):
    """Lightning's SimpleProfiler, with the rank in the name of its file, where Lightning has the rank of the node."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(folder, f"hooks-rank-{rank}")

    def _prepare_filename(self, action_name: str | None = None, extension: str = ".txt") -> str:
        return "-".join([self._stage or "run", self.filename or ""]) + extension
