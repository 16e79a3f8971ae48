"""How a run that may come from anybody is opened: the one way into `run=DIR`, for every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config.yaml_limits import read_yaml_text
from trainer.errors import UserError
from trainer.run.files import CONFIG_FILE, refuse_links_outside
from trainer.run.record import Record


def open_stored_run(run_dir: Path) -> dict[str, Any]:
    """The record of a run, in which nothing leads out of its directory and nothing is too large to be read.

    Nothing is imported. What the configuration says is read by `read_stored_config`, or by the report as plain data.

    Raises: UserError: this is no run directory, run.json or config.yaml is damaged or beyond the limits, a link leads
        elsewhere, or a file is a pipe or a device.
    """
    refuse_links_outside(run_dir)
    if (run_dir / CONFIG_FILE).is_file():
        read_config_text(run_dir)
    return Record(run_dir).read()


def read_config_text(run_dir: Path) -> str:
    """config.yaml, after a look at its size. Raises: UserError: it is beyond the limits. OSError."""
    file = run_dir / CONFIG_FILE
    try:
        return read_yaml_text(file)
    except UserError as error:
        reason = error.lines[0].removeprefix(f"{file}: ")
        raise UserError(f"run={run_dir}: {CONFIG_FILE} is damaged: it {reason}") from error
