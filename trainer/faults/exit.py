"""The end of a process."""

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

EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with the code that it returns or raises as SystemExit; 130 after Ctrl-C.

    After a failure only Python's own exit handlers run, such as W&B's: the parent waits for this process before it
    reacts, unloading torch takes a second, and leaving a process group whose peers are gone takes several.
    """
    try:
        code = main()
    except SystemExit as request:
        if not isinstance(request.code, int):
            raise
        code = request.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    # SLURM sends SIGUSR1 ahead of a time limit. There is nothing left to save, and while Python unloads, for about a
    # second, its own handlers are gone and the signal would kill a process that has done its work.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Ctrl-C in that second would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == EXIT_DONE or "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_with_parent(number: int) -> None:
    """Ask the kernel to send this process a signal when its parent has ended, for whatever reason (Linux only)."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)
