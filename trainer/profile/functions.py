"""profiler=python: the time of each Python function.

cProfile rather than a sampler such as py-spy, which has to read another process's memory: containers and many clusters
forbid that. It counts every call, so it shows small functions larger than they are.
"""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path
from typing import Any

from trainer.profile.recorder import Recorder
from trainer.profile.tables import write_table


class PythonRecorder(Recorder):
    """cProfile over the steps, in the thread that trains: functions-rank-N.prof, .csv and .txt."""

    def start(self) -> None:
        """See Recorder."""
        self.profile = cProfile.Profile()
        self.profile.enable()

    def stop(self) -> None:
        """See Recorder."""
        self.profile.disable()
        self.profile.dump_stats(self.file("functions", ".prof"))
        stats: Any = pstats.Stats(self.profile)
        rows = [
            [_shown(*function), calls, self_s * 1e3, total_s * 1e3]
            for function, (_, calls, self_s, total_s, _) in stats.stats.items()
        ]
        rows.sort(key=lambda row: row[2], reverse=True)
        columns = ["function", "calls", "self_ms", "total_ms"]
        write_table(self.file("functions", ""), f"Python functions, {self.title}", columns, rows)

    def open_range(self, name: str) -> None:
        """See Recorder; cProfile knows no named parts."""

    def close_range(self, opened: None) -> None:
        """See Recorder."""


def _shown(file: str, line: int, name: str) -> str:
    """A function as pstats has it, with the end of its path; "~" is a function that is not Python's."""
    return name if file == "~" else f"{'/'.join(Path(file).parts[-3:])}:{line}({name})"
