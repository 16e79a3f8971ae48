"""Processes that need not import torch: a server that has imported it forks one for each command line (Linux only).

    done = run_warm(["-m", "trainer", *words], cwd=directory)
    with WarmPopen(["-m", "trainer", *words], cwd=directory) as process: ...

stand for subprocess.run([sys.executable, ...]) and subprocess.Popen([sys.executable, ...]). Such a process is what a
new one is after its imports, those of the project included: it has its own working directory, environment, streams and
session, and no threads. The ranks that it starts through torch's elastic agent are forked as well. What a test says
about the start of a process, its imports or its interpreter needs a real one.

The server (warm_server.py) ends with the process that has started it, and its processes end with it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import conftest  # noqa: F401 - it sets the environment that is read below

# Variables that are read when Python starts or a package is imported.
READ_AT_IMPORT = ("PYTHON", "OMP_NUM_THREADS", "HF_", "MPL", "CUDA_VISIBLE_DEVICES")
ENVIRONMENT = dict(os.environ)
SERVER = Path(__file__).with_name("warm_server.py")
MAX_REQUEST_BYTES = 2**18


class WarmPopen:
    """A process forked by the server that runs `python ARGUMENTS`, with the interface of subprocess.Popen.

    Args: arguments: what follows the interpreter: "-m", a module and its words, or a script and its words. env: added
        to this process's. stdout, stderr: as for subprocess.Popen; a pipe holds text.
    Raises: ValueError: imports would read a variable in env; start a real process.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: os.PathLike[str] | str,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[Any] = subprocess.PIPE,
        stderr: int | IO[Any] = subprocess.PIPE,
    ) -> None:
        environment = {**os.environ, **(env or {})}
        if not can_fork(environment):
            raise ValueError(f"a process with {env} has to be a real one")
        self.args = [sys.executable, *arguments]
        self.returncode: int | None = None
        self.stdout, out = _stream(stdout)
        self.stderr, error = (None, out) if stderr == subprocess.STDOUT else _stream(stderr)
        self._status, status = socket.socketpair()
        request = {"arguments": list(arguments), "cwd": str(cwd), "env": environment, "ranks": _num_ranks(arguments)}
        socket.send_fds(_server(), [json.dumps(request).encode()], [status.fileno(), out, error])
        status.close()
        for descriptor in {out, error}:
            os.close(descriptor)
        self._answers = self._status.makefile()
        self.pid = int(self._receive())

    def _receive(self) -> str:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the fork server has died; its output is above")
        return line

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        ready, _, _ = select.select([self._status], [], [], 0) if self.returncode is None else ([], [], [])
        return self.wait() if ready else self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Returns: the exit code. Raises: subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = int(self._receive())
            self._answers.close()
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both pipes to their end, and wait. Raises: subprocess.TimeoutExpired; the process runs on."""
        streams = (self.stdout, self.stderr)
        pool = ThreadPoolExecutor(len(streams))
        texts = [pool.submit(stream.read) if stream else None for stream in streams]
        pool.shutdown(wait=False)
        self.wait(timeout)
        stdout, stderr = (text.result(timeout) if text else "" for text in texts)
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> WarmPopen:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            self.kill()
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def run_warm(
    arguments: Sequence[str],
    *,
    cwd: os.PathLike[str] | str,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in a forked process, or in a real one where its environment requires that.

    Raises: subprocess.TimeoutExpired: it ran for longer, and was killed.
    """
    environment = {**os.environ, **(env or {})}
    if not can_fork(environment):
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    with WarmPopen(arguments, cwd=cwd, env=env) as process:
        stdout, stderr = process.communicate(timeout_s)
        return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment would import what the server has imported."""
    differing = {name for name in {*ENVIRONMENT, *environment} if ENVIRONMENT.get(name) != environment.get(name)}
    return sys.platform == "linux" and not any(name.startswith(READ_AT_IMPORT) for name in differing)


@functools.cache
def _server() -> socket.socket:
    """The connection to this process's server, which is started now."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST_BYTES)
    # C++ reads this one when torch is imported; trainer sets it for ranks.
    environment = {**ENVIRONMENT, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    subprocess.Popen(
        [sys.executable, "-P", str(SERVER), str(theirs.fileno())],
        env=environment,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    return ours


def _stream(kind: int | IO[Any]) -> tuple[IO[str] | None, int]:
    """Returns: what the test reads, and the descriptor that the process writes to."""
    if kind == subprocess.PIPE:
        read_end, write_end = os.pipe()
        return os.fdopen(read_end), write_end
    if kind == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_WRONLY)
    return None, os.dup(kind if isinstance(kind, int) else kind.fileno())


def _num_ranks(arguments: Sequence[str]) -> int:
    """Processes that this command line will start through the elastic agent, as far as its words say."""
    found = re.search(r"(?:trainer\.devices|--nproc-per-node)=(\d+)", " ".join(arguments))
    launcher = "torch.distributed.run" in arguments
    return int(found[1]) if found and (launcher or int(found[1]) > 1) else 0
