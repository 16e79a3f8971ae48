"""The live page, and the addresses behind it. It listens on 127.0.0.1 unless host= says otherwise, and asks no one."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from examples.sentiment_monitor.application import opened
from examples.sentiment_monitor.delivery import Send, deliver, message_of
from examples.sentiment_monitor.monitor import Monitor
from examples.sentiment_monitor.options import GENERATED, ServeOptions
from examples.sentiment_monitor.settings import OTHER
from examples.sentiment_monitor.store import Store
from examples.sentiment_monitor.training import TrainedModel
from examples.web import protect
from trainer import UserError

PAGE = Path(__file__).with_name("page.html")
MAX_BODY_BYTES = 8 * 2**20
MAX_HEADLINES = 1000
# The page shows that many windows at most.
SHOWN_WINDOWS = 500
DELIVERS_EVERY_S = 1.0
SHUTDOWN_S = 10
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def serve(options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM. Raises: UserError: an option, the model or the store; the port is taken."""
    monitor, targets = opened(options)
    trained_on = TrainedModel.read(options.out).data
    try:
        listening = socket.create_server((options.host, options.port))
    except OSError as error:
        raise UserError(f"port={options.port}: cannot listen on {options.host}: {error.strerror}") from error
    print(f"http://{options.host}:{listening.getsockname()[1]}/", flush=True)
    app = application(monitor, targets, trained_on, options.host)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_S)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # uvicorn takes them while it serves, and raises them again at its end
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def application(monitor: Monitor, targets: Mapping[str, Send], trained_on: str, host: str) -> FastAPI:
    """The addresses. Args: trained_on: the data that the model learned from. host: see `protect`."""
    store, settings = monitor.store, monitor.settings
    scoring = threading.Lock()  # one batch at a time: the model has all threads that it may use

    app = FastAPI(
        title="Sentiment monitor",
        lifespan=partial(_deliveries, monitor.store, targets),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )

    protect(app, host, MAX_BODY_BYTES, HEADERS)

    @app.get("/")
    def page() -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/state")
    def state() -> dict[str, Any]:
        """All that the page draws but the headlines."""
        series = store.series()
        starts = sorted({row["start_s"] for row in series})[-SHOWN_WINDOWS:]
        generated = store.read("SELECT 1 FROM headlines WHERE origin = ? LIMIT 1", GENERATED)
        return {
            "window_s": settings.window_s,
            "topics": [*settings.topics, OTHER],
            "series": [row for row in series if starts and row["start_s"] >= starts[0]],
            "alerts": [message_of(alert) for alert in reversed(store.alerts())],
            "undelivered": store.undelivered(),
            "false_alarms_per_year": settings.false_alarms_per_year,
            "model_from_generated": trained_on == GENERATED,
            "has_generated": bool(generated),
        }

    @app.get("/headlines")
    def headlines(topic: str, start_s: Annotated[int, Query(ge=0, lt=2**53)]) -> list[dict[str, Any]]:
        """The headlines behind a point."""
        return store.headlines_of(topic, start_s)

    @app.post("/headlines")
    async def add(records: Annotated[list[Any], Depends(_records)]) -> dict[str, Any]:
        """Score and store; the answer comes after the commit."""

        def run() -> dict[str, Any]:
            with scoring:
                outcome = monitor.add(records, origin="http")
            return {**asdict(outcome), "alerts": [message_of(alert) for alert in outcome.alerts]}

        return await run_in_threadpool(run)

    return app


@asynccontextmanager
async def _deliveries(store: Store, targets: Mapping[str, Send], _: FastAPI) -> AsyncIterator[None]:
    """Deliver alerts beside the service."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(DELIVERS_EVERY_S):
            with suppress(sqlite3.OperationalError):  # another process writes for long; the next round tries again
                deliver(store, targets)

    thread = threading.Thread(target=run, name="deliveries", daemon=True)
    thread.start()
    yield
    ended.set()


async def _records(request: Request) -> list[Any]:
    """The records of a body {"headlines": [...]}. Raises: HTTPException: it is not of that form."""
    # A page of another site can send a form or plain text without asking; it cannot send this type.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Content-Type: application/json is expected")
    body = await request.body()
    try:
        records = json.loads(body)["headlines"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise HTTPException(422, 'a JSON object {"headlines": [...]} is expected') from error
    if not isinstance(records, list) or len(records) > MAX_HEADLINES:
        raise HTTPException(422, f"headlines: a list of at most {MAX_HEADLINES} is expected")
    return records
