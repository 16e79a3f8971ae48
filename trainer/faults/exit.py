"""The end of a process. Torch-free."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from trainer.errors import EXIT_DONE


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Do it and exit with the code that it returns or asks for.

    After a failure whoever started this process waits for it to react, and unloading torch takes a second, a process
    group whose peers are gone several: then only Python's own exit handlers run, such as W&B's.
    """
    try:
        code = main()
    except SystemExit as request:
        if not isinstance(request.code, int):
            raise
        code = request.code
    # SLURM sends it ahead of a time limit. There is nothing left to save, and while Python unloads, for about a second,
    # its own handlers are gone and the signal would kill a process that has done its work.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if code == EXIT_DONE or "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_with_parent(number: int) -> None:
    """Ask the kernel for a signal to this process when its parent is gone, however it went (Linux only)."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)
