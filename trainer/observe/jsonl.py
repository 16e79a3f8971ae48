"""metrics.jsonl: one line a logged step, readable without any service."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from trainer.errors import UserError
from trainer.run.files import METRICS_FILE, open_plain


class JsonlLogger(Logger):
    """Appends {"step": ..., name: value, ...} on rank 0; each line is in the file when the call returns."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path = run_dir / METRICS_FILE

    @property
    def name(self) -> str:
        """Name of the logger, which Lightning asks for."""
        return "jsonl"

    @property
    def version(self) -> str:
        """Empty: a run directory is its own version."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line. Raises: UserError: the storage refuses it."""
        line = json.dumps({"step": step, **{name: float(value) for name, value in metrics.items()}})
        try:
            descriptor = open_plain(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror})",
                "the same command resumes from the newest checkpoint, once the storage takes it",
            ) from error

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Write nothing: config.yaml holds them."""
