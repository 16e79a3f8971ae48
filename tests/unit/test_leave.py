"""A process that has done its work is not killed by SLURM's warning of a time limit."""

import signal
import subprocess
import sys

import pytest

LATE_SIGNAL = """
import os, signal
from trainer.faults.exit import run_and_exit

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGUSR1):
        kill(pid, number)

# Modules are cleared after Python has given up its own signal handlers.
late = Late()
signal.signal(signal.SIGUSR1, lambda number, frame: None)
"""


@pytest.mark.parametrize(("end", "code"), [("run_and_exit(lambda: 0)", 0), ("raise SystemExit(0)", -signal.SIGUSR1)])
def test_a_signal_while_python_unloads(end: str, code: int) -> None:
    assert subprocess.run([sys.executable, "-c", LATE_SIGNAL + end], check=False).returncode == code
