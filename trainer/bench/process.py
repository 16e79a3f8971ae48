"""A process that is measured as a whole."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    code: its exit code; negative for a signal. cpu_s: CPU time in user and system mode, of the process and of all that
    it has waited for. peak_gib: resident memory of the largest one of these, or of the process
    that starts them, if that is larger.
    """

    code: int
    stdout: str
    stderr: str
    cpu_s: float
    peak_gib: float


def run_process(command: Sequence[str], environment: Mapping[str, str]) -> Finished:
    """Run a command to its end. Args: environment: variables besides those of this process."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        # Popen.wait does not tell what the process has used.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = _text(stdout), _text(stderr)
    # Linux gives KiB.
    return Finished(process.returncode, texts[0], texts[1], usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
