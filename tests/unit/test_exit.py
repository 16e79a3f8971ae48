"""How a process ends: by a late signal, and by Ctrl-C before training."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS

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


UNLOAD_ABORTS = """
import atexit, ctypes, time, threading
from concurrent.futures import ThreadPoolExecutor
from trainer.faults.exit import run_and_exit

libc = ctypes.CDLL(None)
# As a C++ library that is unloaded while a thread of it runs.
libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)
import torch

def write():
    threading.main_thread().join(0.3)
    print("thread")

ThreadPoolExecutor().submit(write)
atexit.register(print, "atexit")
"""


@pytest.mark.parametrize(("end", "code"), [("run_and_exit(lambda: 0)", 0), ("raise SystemExit(0)", -signal.SIGABRT)])
def test_threads_and_handlers_end_and_no_library_is_unloaded(end: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", UNLOAD_ABORTS + end], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (code, ["thread", "atexit"])


INTERRUPTED_AT_IMPORT = """
import signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from trainer.__main__ import script
sys.argv[1:] = {words!r}
script()
"""


def interrupted_at(module: str, directory: Path) -> subprocess.CompletedProcess[str]:
    code = INTERRUPTED_AT_IMPORT.format(module=module, words=SPIRALS_WORDS)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("module", ["trainer.cli", "omegaconf"])
def test_ctrl_c_before_a_run_is_open(module: str, tmp_path: Path) -> None:
    done = interrupted_at(module, tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("module", ["torch", "pytorch_lightning"])
def test_ctrl_c_while_an_open_run_imports(module: str, tmp_path: Path) -> None:
    done = interrupted_at(module, tmp_path)
    assert (done.returncode, done.stderr) == (75, "stopped; the same command resumes\n")
    (run,) = (tmp_path / "outputs" / "spirals").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
