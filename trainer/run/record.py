"""run.json: the record of a run and of every attempt at it."""

from __future__ import annotations

import os
import platform
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.config.secrets import redact_text, redact_words
from trainer.errors import UserError
from trainer.run.files import RECORD_FILE, read_json, write_json
from trainer.run.provenance import cpu_name, git_state, gpu_names, package_versions, user_name


class Record:
    """run.json of a run directory: identity, W&B id, attempts with versions, hardware, start, end and cause.

    Written by one process at a time: the one that holds the run's lock, or rank 0 on its behalf while ranks run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / RECORD_FILE

    def read(self) -> dict[str, Any]:
        """Read the record. Raises: UserError: this is no run directory, or it is damaged."""
        try:
            record = read_json(self.file)
        except UnicodeDecodeError as error:
            raise UserError(f"run={self.directory}: {RECORD_FILE} is damaged") from error
        except (OSError, ValueError) as error:
            raise UserError(f"run={self.directory}: not a run directory (no readable {RECORD_FILE})") from error
        if not isinstance(record, dict):
            raise UserError(f"run={self.directory}: {RECORD_FILE} is damaged (it holds no record)")
        return record

    def update(self, **values: Any) -> None:
        """Replace top-level values, atomically."""
        write_json(self.file, {**self.read(), **values})

    def begin_attempt(self, launcher: str, world_size: int, with_git_diff: bool = False) -> None:
        """Record that training starts or resumes, with code, versions and hardware."""
        attempt = {
            "start": now(),
            "end": None,
            "cause": None,
            "command": redact_words(sys.argv),
            "launcher": launcher,
            "world_size": world_size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "user": user_name(),
            "git": git_state(with_git_diff),
            "versions": {"python": platform.python_version(), **package_versions()},
            "hardware": {"cpu": cpu_name(), "num_cores": os.cpu_count(), "gpus": gpu_names()},
        }
        self.update(status="running", attempts=[*self.read()["attempts"], attempt])

    def end_attempt(self, status: str, cause: str) -> None:
        """Record how the attempt ended. Args: status: finished, stopped or failed. cause: a phrase."""
        attempts = self.read()["attempts"]
        attempts[-1].update(end=now(), cause=redact_text(cause))
        self.update(status=status, attempts=attempts)

    def record_restart(self, restart: int) -> None:
        """Record that the ranks were started again within the same attempt. Args: restart: counted from 1."""
        attempts = self.read()["attempts"]
        attempts[-1]["restarts"] = restart
        self.update(attempts=attempts)


def now() -> str:
    """The time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
