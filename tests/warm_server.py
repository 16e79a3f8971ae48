"""The fork server of tests: `warm_server.py DESCRIPTOR` serves requests that arrive there (see warm.py).

A request is JSON with "arguments", "cwd", "env" and "ranks", and three descriptors: status, stdout, stderr. The id of
the process and its exit code are written to status, each in a line.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

MAX_REQUEST_BYTES = 2**18
# What runs import. Not deepspeed: it changes what other packages do.
IMPORTED = (
    "hydra",
    "pydantic",
    "rich.console",
    "psutil",
    "torch.distributed.run",
    "pytorch_lightning",
    "transformers.models.bert.modeling_bert",
    "safetensors.torch",
    "torchmetrics.classification",
    "sklearn.datasets",
    "datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "bokeh.document",
    "bokeh.models",
    "wandb",
    "PIL.Image",
    "hydra._internal.core_plugins.basic_launcher",
    "trainer.verbs.fit",
    "trainer.engine.train",
    "trainer.report.page",
    "tasks.cnn.module",
    "tasks.dcgan.module",
    "tasks.bert.module",
)

Request = Mapping[str, Any]


def serve(requests: socket.socket) -> None:
    """Fork a process for each request, and report the ends, until the other end is closed."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    pid, status = key.data
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    _report(status, code)
                    status.close()
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    continue
                message, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 3)
                if not message:
                    return
                pid = os.fork()
                if pid == 0:
                    run_command(json.loads(message), *descriptors[1:])
                for descriptor in descriptors[1:]:
                    os.close(descriptor)
                status = socket.socket(fileno=descriptors[0])
                _report(status, pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _report(status: socket.socket, number: int) -> None:
    try:
        status.sendall(f"{number}\n".encode())
    except BrokenPipeError:
        return  # the test has ended without waiting


def run_command(request: Request, stdout: int, stderr: int) -> NoReturn:
    """In a new process: run what is requested, with spare processes for the ranks that it will start."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_ranks_from([Spare() for _ in range(request["ranks"])])
    become(request)


def become(request: Request) -> NoReturn:
    """Run `python ARGUMENTS` as this process."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # Fresh processes do not share their random numbers.
    random.seed()
    importlib.import_module("numpy").random.seed()
    code = 1
    try:
        run_python(request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as Python does at its end
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


def run_python(arguments: Sequence[str]) -> None:
    """What the interpreter does with its arguments, "-u", "-m" and a script being those that it knows."""
    sys.orig_argv = [sys.executable, *arguments]
    words = list(arguments)
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # pyright: ignore[reportAttributeAccessIssue]
        words.pop(0)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


class Spare:
    """A child that becomes a rank when it is asked to, with the part of subprocess.Popen that the agent uses."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST_BYTES)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            descriptor = os.dup2(theirs.fileno(), 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            message, streams, _, _ = socket.recv_fds(socket.socket(fileno=descriptor), MAX_REQUEST_BYTES, 2)
            if not message:
                os._exit(0)  # the parent has ended without starting ranks
            os.dup2(streams[0], 1)
            os.dup2(streams[1], 2)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            become(json.loads(message))
        theirs.close()
        self.ours = ours

    def start(self, request: Request, stdout: int, stderr: int) -> None:
        """Let the child go on as `python ARGUMENTS`."""
        socket.send_fds(self.ours, [json.dumps(request).encode()], [stdout, stderr])
        self.ours.close()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the rank runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Returns: the exit code. Raises: subprocess.TimeoutExpired."""
        if self.poll() is None:
            process = os.pidfd_open(self.pid)
            ended, _, _ = select.select([process], [], [], timeout)
            os.close(process)
            if not ended:
                raise subprocess.TimeoutExpired("rank", timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code


def start_ranks_from(spares: list[Spare]) -> None:
    """Let torch's elastic agent in this process take its ranks from here; when none is left it starts processes."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    start_process = SubprocessHandler._popen

    def start(handler: SubprocessHandler, args: tuple[str, ...], env: dict[str, str]) -> Any:
        if not spares or args[0] != sys.executable:
            return start_process(handler, args, env)
        spare = spares.pop(0)
        request = {"arguments": args[1:], "cwd": str(Path.cwd()), "env": env}
        streams = (handler._stdout, handler._stderr)
        spare.start(request, *(stream.fileno() if stream else n for n, stream in enumerate(streams, start=1)))
        return spare

    SubprocessHandler._popen = start


def main() -> None:
    """Import, and serve."""
    # Ctrl-C is for pytest, which ends this process by ending.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in IMPORTED:
        importlib.import_module(name)
    threads = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    # pyarrow's allocator starts its thread again in a child.
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, f"a fork would lose threads: {threads}"
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
