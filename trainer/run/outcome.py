"""How a run ended, for who started it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["finished", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a run ended. cause: a phrase for run.json."""

    run_dir: Path
    status: Status
    cause: str
