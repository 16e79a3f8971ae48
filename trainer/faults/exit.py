"""The end of a process."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from trainer.errors import EXIT_DONE

EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with the code that it returns or raises as SystemExit; 130 after Ctrl-C.

    Where torch is loaded, Python's own exit handlers run, such as W&B's, and the process ends before C++ libraries are
    unloaded. Unloading takes a second, which a parent waits for; leaving a process group whose peers are gone takes
    several; and a thread of a process group that runs on while its library is unloaded ends the process by SIGABRT.
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
    # SLURM sends SIGUSR1 ahead of a time limit. There is nothing left to save, and while Python unloads its own
    # handlers are gone: the signal would kill a process that has done its work.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Ctrl-C at that time would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "torch" not in sys.modules:
        sys.exit(code)
    if code == EXIT_DONE:
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]  # joins threads, as sys.exit does
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


def outlive_parent() -> None:
    """Undo `end_with_parent`, and leave the parent's process group, which torch's agent kills as a whole."""
    end_with_parent(0)
    os.setsid()
