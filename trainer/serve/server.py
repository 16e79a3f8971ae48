"""The process: it listens, loads, serves, and ends in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from trainer.errors import EXIT_DONE, UserError
from trainer.serve.app import build_app
from trainer.serve.config import KEY_VARIABLE, ServeConfig
from trainer.serve.guard import is_loopback
from trainer.serve.model import ServedModel, find_export, load_served
from trainer.serve.protocol import Protocol
from trainer.serve.reload import signature, watch
from trainer.serve.service import Service

BACKLOG = 2048
MAX_HEAD_BYTES = 2**14
# Between the end of listening and that of idle connections: what was accepted last has time to send its request.
SETTLE_S = 0.3


def serve(config: ServeConfig) -> int:
    """Serve an export until a signal. Returns: exit code. Raises: UserError: it cannot be served, or not there."""
    folder = find_export(config)
    service = Service(config, read_key(config))
    listener = _listen(config)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its lines about its own start and end
    if not is_loopback(config.host) and service.api_key is None:
        print(
            f"warning: host={config.host}: anyone who reaches it can use it; api_key_file=FILE asks for a key",
            file=sys.stderr,
        )
    try:
        asyncio.run(Server(service, folder, listener).run())
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
        config = service.config
        app = build_app(service)
        app.router.lifespan_context = self._lifespan
        http = type("BoundProtocol", (Protocol,), {"limits": config, "metrics": service.metrics})
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=http,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
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
            self.service.model = await asyncio.to_thread(load_served, self.folder, self.service.config)
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self.failure = error
            self.uvicorn.should_exit = True
            return
        host, port = self.listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{port}/  {_title(self.service.model)}; Ctrl-C ends it", flush=True)
        if self.service.config.reload_every_s:
            await watch(self.service, self.folder, found)

    def _on_signal(self, number: int) -> None:
        if self.service.draining:
            # The second one ends the process at once, as that signal does by default.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.service.draining = True
        self._drain = asyncio.create_task(self._end_in_order())

    async def _end_in_order(self) -> None:
        """Answer what still comes, close the door, and let uvicorn finish what is under way."""
        await asyncio.sleep(self.service.config.drain_s)
        for each in self.uvicorn.servers:
            each.close()
        await asyncio.sleep(SETTLE_S)
        self.uvicorn.should_exit = True


def _title(model: ServedModel) -> str:
    manifest = model.exported.manifest
    return f"{manifest.task} ({manifest.format}) of {Path(str(manifest.run['directory'])).name}"
