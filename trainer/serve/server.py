"""The process: it listens, loads, serves, and ends in order."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import struct
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from trainer.errors import EXIT_DONE, UserError, printable
from trainer.serve.app import build_app
from trainer.serve.config import KEY_VARIABLE, ServeConfig
from trainer.serve.guard import is_loopback
from trainer.serve.model import ServedModel, find_export, load_served
from trainer.serve.protocol import Protocol
from trainer.serve.reload import signature, watch
from trainer.serve.service import Service

BACKLOG = 2048
# Between the end of listening and that of idle connections: what was accepted last has time to send its request.
SETTLE_S = 0.3
SO_ATTACH_FILTER = 26  # of Linux; the module socket has no name for it
# BPF: load byte 13 of the TCP header, the flags; drop the packet where SYN is set, keep it otherwise.
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
# For handshakes that are under way when no new ones may begin.
HANDSHAKE_S = 0.2


def serve(config: ServeConfig) -> int:
    """Serve an export until a signal. Returns: exit code. Raises: UserError: it cannot be served, or not there."""
    folder = find_export(config)
    service = Service(config, read_key(config))
    listener = _listen(config)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    # uvicorn's lines about its own start and end, and what is wrong with the bodies that clients send.
    for name in ("uvicorn", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if not is_loopback(config.host) and service.api_key is None:
        print(
            f"warning: host={config.host}: anyone who reaches it can use it; api_key_file=FILE asks for a key",
            file=sys.stderr,
        )
    try:
        server = Server(service, folder, listener)
        # uvicorn chooses uvloop where it is installed, which takes less of the cores that compute.
        with asyncio.Runner(loop_factory=server.uvicorn.config.get_loop_factory()) as runner:
            runner.run(server.run())
    finally:
        listener.close()
        service.close()
    return EXIT_DONE


def read_key(config: ServeConfig) -> str | None:
    """The key of api_key_file, else of the environment. Raises: UserError: the file cannot be read, or is empty."""
    if config.api_key_file is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        key = Path(config.api_key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"api_key_file={config.api_key_file}: cannot be read as text") from error
    if not key:
        raise UserError(f"api_key_file={config.api_key_file}: is empty; write the key into it")
    return key


def _listen(config: ServeConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"host={config.host} port={config.port}: {reason}; port=0 takes a free port") from error


class Server:
    """uvicorn around a service: loading beside /health, and an end that loses nothing that was accepted."""

    def __init__(self, service: Service, folder: Path, listener: socket.socket) -> None:
        self.service, self.folder, self.listener = service, folder, listener
        self.failure: BaseException | None = None
        self._drain: asyncio.Task[None] | None = None  # the loop itself keeps only a weak reference
        config = service.config
        app = build_app(service)
        app.router.lifespan_context = self._lifespan
        # uvicorn makes one for each connection, and hands over nothing of ours.
        self.protocol: type[Protocol] = type(
            "BoundProtocol", (Protocol,), {"limits": config, "metrics": service.metrics}
        )
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=self.protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=int(config.body_s + config.request_s) + 1,
            )
        )

    async def run(self) -> None:
        """Serve until a signal, or until the export turns out to be unusable. Raises: UserError: it is."""
        await self.uvicorn.serve(sockets=[self.listener])
        if self.failure is not None:
            raise self.failure

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        # uvicorn would raise the signal again after its end, so that the exit code would not be 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        work = asyncio.create_task(self._load_and_watch())
        yield
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work

    async def _load_and_watch(self) -> None:
        found = signature(self.folder)
        try:
            model = await asyncio.to_thread(load_served, self.folder, self.service.config)
            title = _title(model)
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self.failure = error
            self.uvicorn.should_exit = True
            return
        self.service.model = model
        host, port = self.listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{port}/  {title}; Ctrl-C ends it", flush=True)
        if self.service.config.reload_every_s:
            await watch(self.service, self.folder, found)

    def _on_signal(self, number: int) -> None:
        if self._drain is not None:
            # The second one ends the process at once, as that signal does by default.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.service.draining = True
        self._drain = asyncio.create_task(self._end_in_order())

    async def _end_in_order(self) -> None:
        """Answer what still comes, close the door, and let uvicorn finish what is under way."""
        await asyncio.sleep(self.service.config.drain_s)
        refuse_handshakes(self.listener)
        await asyncio.sleep(HANDSHAKE_S)
        await self._accept_rest()
        for each in self.uvicorn.servers:
            each.close()
        await asyncio.sleep(SETTLE_S)
        self.uvicorn.should_exit = True

    async def _accept_rest(self) -> None:
        """Take the connections that the kernel has accepted; the end of listening would reset them."""
        server = self.uvicorn
        protocol = partial(self.protocol, server.config, server.server_state, server.lifespan.state)
        while True:
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                return
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)


def refuse_handshakes(listener: socket.socket) -> None:
    """Let the kernel drop packets that open a connection, so that none is between SYN and the end of listening.

    The client's kernel tries again after a second, and finds the port closed. Where this is not Linux, a connection of
    that moment is reset.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in DROP_SYN))
    with suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(DROP_SYN), ctypes.addressof(code))
        )


def _title(model: ServedModel) -> str:
    manifest = model.exported.manifest
    return printable(f"{manifest.task} ({manifest.format}) of {Path(manifest.run['directory']).name}", kept="")
