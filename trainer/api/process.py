"""What a call from Python must leave as it was: the process belongs to a script or a notebook."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from trainer.errors import UserError
from trainer.faults.signals import STOP_SIGNALS
from trainer.launch.discover import is_joined
from trainer.launch.rank_logs import RankLog

_lock = threading.Lock()
_joined = threading.Event()


@contextmanager
def exclusive(name: str, timeout_s: float = 0.0) -> Iterator[None]:
    """One call at a time: random generators, signal handlers and log files belong to the process.

    Args: name: of the function, for the message. timeout_s: how long to wait for the other call.
    Raises: UserError: another call is still in progress.
    """
    if not _lock.acquire(timeout=timeout_s):
        advice = "wait for it, or use another process: random generators belong to the process"
        raise UserError(f"trainer.{name}: another call of trainer is in progress in this process", advice)
    try:
        yield
    finally:
        _lock.release()


@contextmanager
def unchanged_process(command: Sequence[str]) -> Iterator[None]:
    """Give the process back as it was: generators, settings, environment, loggers, warnings, handlers, output.

    Args: command: the call as words, for the run's record.
    Raises: UserError: a second call on a rank of torchrun or srun, whose ranks meet once only.
    """
    if is_joined() and _joined.is_set():
        advice = "use a script for each call, or trainer.devices=N, which starts ranks for each"
        raise UserError(f"{command[0]}: the ranks of torchrun or srun have met for an earlier call already", advice)
    _joined.set()
    with ExitStack() as stack:
        _import_training()
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(unchanged_generators())
        for restore in (
            _interpreter(command), _environment(), _handlers(), _loggers(), _output(), _torch_settings(),
        ):  # fmt: skip
            stack.callback(restore)
        yield


def _import_training() -> None:
    """Import what sets up loggers and filters of its own, which are meant to stay."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets tqdm warns about bars that nobody draws.
        warnings.filterwarnings("ignore", "IProgress not found")
        import tqdm.auto  # noqa: F401
    import pytorch_lightning  # noqa: F401


@contextmanager
def unchanged_generators() -> Iterator[None]:
    """Give back the random generators of Python, NumPy, torch and all GPUs as they were."""
    import torch

    from trainer.generators import capture_random_state, restore_random_state

    state = capture_random_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        restore_random_state(state)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


def _interpreter(command: Sequence[str]) -> Callable[[], None]:
    """The command line, and hooks that W&B sets.

    A run's record and W&B read the command from sys.argv, which in a notebook is that of its kernel.
    """
    before = sys.argv, sys.exit, sys.excepthook
    sys.argv = list(command)

    def restore() -> None:
        sys.argv, sys.exit, sys.excepthook = before

    return restore


def _environment() -> Callable[[], None]:
    before = dict(os.environ)
    if "ipykernel" in sys.modules:
        # A kernel sets it, and rich would take the notebook, or the ranks' output in it, for a terminal.
        os.environ.pop("FORCE_COLOR", None)

    def restore() -> None:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})

    return restore


def _handlers() -> Callable[[], None]:
    if threading.current_thread() is not threading.main_thread():
        return lambda: None  # where none can be set
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None:  # set by C code
                signal.signal(number, handler)

    return restore


def _loggers() -> Callable[[], None]:
    """Level, handlers and propagation of the loggers that exist, and whether warnings are logged."""
    known = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(each for each in known if isinstance(each, logging.Logger))]
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    showed_by = warnings.showwarning.__module__

    def restore() -> None:
        """Close the handlers that were added, and give back the others."""
        for logger, level, handlers, propagate in before:
            for added in set(logger.handlers) - set(handlers):
                added.close()
            # A rank log from before is closed now, and a closed file handler opens its file again when it is used.
            logger.handlers[:] = [each for each in handlers if not isinstance(each, RankLog)]
            logger.setLevel(level)
            logger.propagate = propagate
        if showed_by != logging.__name__:
            logging.captureWarnings(False)

    return restore


def _output() -> Callable[[], None]:
    """stdout and stderr, which a rank other than 0 redirects to its log."""
    if not is_joined():
        return lambda: None
    before = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}

    def restore() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in before.items():
            os.dup2(copy, descriptor)
            os.close(copy)

    return restore


def _torch_settings() -> Callable[[], None]:
    """What a configuration sets: deterministic, benchmark, float32_matmul_precision, the current GPU."""
    import torch

    cudnn = torch.backends.cudnn
    matmul, benchmark, cudnn_deterministic = torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def restore() -> None:
        torch.set_float32_matmul_precision(matmul)
        cudnn.benchmark, cudnn.deterministic = benchmark, cudnn_deterministic
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if gpu is not None:
            torch.cuda.set_device(gpu)

    return restore
