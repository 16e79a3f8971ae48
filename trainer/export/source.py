"""What a format is written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.inference import ExportableInference


@dataclass(frozen=True)
class Source:
    """model: of the run, in float32. calibration: raw training inputs, as few as one wants; empty without the data."""

    model: ExportableInference
    run_dir: Path
    calibration: Sequence[Any]
