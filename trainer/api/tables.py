"""Runs and their metrics as pandas tables; a run directory is only read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import UserError
from trainer.report.metrics_reader import MetricsReader
from trainer.report.runs import Runs

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "run_dir", "status", "task", "model", "data", "step", "monitor", "best", "loss", "samples_per_s", "start",
    "problem",
)  # fmt: skip


def runs(root: str | os.PathLike[str] = "outputs") -> pd.DataFrame:
    """All runs below a directory, the last started first.

    Returns: a row for each run. run_dir; status: created, running, finished, stopped, failed, or damaged; task, model,
        data; step: the last logged one; monitor: the metric that chooses the weights, and best, its best value; loss:
        of training, at the end; samples_per_s: median; start: of the last attempt, UTC; problem: of a damaged run.
    Raises: UserError: there is no such directory.
    """
    import pandas as pd

    place = Path(root)
    if not place.is_dir():
        raise UserError(f"root={place}: no such directory")
    rows = [{**row, "run_dir": str(place / row["run"])} for row in Runs(place).rows()]
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    table["start"] = pd.to_datetime(table["start"], utc=True)
    table["step"] = table["step"].astype("Int64")
    return table.sort_values("start", ascending=False, ignore_index=True)


def history_of(run_dir: Path) -> pd.DataFrame:
    """metrics.jsonl, indexed by step. Raises: UserError: the file is damaged."""
    import pandas as pd

    series = _reader(run_dir).series()
    table = pd.DataFrame({name: dict(zip(each.steps, each.values, strict=True)) for name, each in series.items()})
    return table.sort_index().rename_axis("step")


def last_values(run_dir: Path) -> dict[str, float]:
    """The last value of each metric, by name. Raises: UserError: metrics.jsonl is damaged."""
    return _reader(run_dir).latest()


def _reader(run_dir: Path) -> MetricsReader:
    reader = MetricsReader(run_dir)
    reader.refresh()
    return reader
