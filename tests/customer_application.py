"""A small application, trained by its command, and its service on a socket of this process."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from examples.customer_service.__main__ import main
from examples.customer_service.assistant import Assistant
from examples.customer_service.data import GENERATED, SPLITS, Row, read_questions, write_csv
from examples.customer_service.service import make_app

INTENTS = ("cancel_order", "reset_password", "track_order")
# Enough to tell three intents apart; the thresholds of 100 held-out questions can show a precision of 0.9.
QUICK = ["precision=0.9", "trainer.max_epochs=4", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]


def write_questions(file: Path) -> Path:
    """Generated questions of three intents as a file with answers of its own."""
    splits = read_questions(GENERATED).splits
    rows = [row for split in SPLITS for row in splits[split] if row.intent in INTENTS]
    write_csv(file, [Row(row.question, row.intent, f"about {row.intent}: {{order_number}}") for row in rows])
    return file


def train_quickly(out: Path) -> Path:
    """Returns: the folder of the application."""
    file = write_questions(out.parent / "questions.csv")
    assert main(["train", f"data={file}", f"out={out}", *QUICK]) == 0
    return out


class Client:
    """What a client of the service sees: status and JSON of a response."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        every = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, data, every, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            content = error.read()
            return error.code, json.loads(content) if content.startswith((b"{", b"[")) else content


@contextmanager
def served(assistant: Assistant) -> Iterator[Client]:
    """The service on a free port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(assistant), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()
