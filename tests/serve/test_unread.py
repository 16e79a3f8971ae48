"""A client that sends all of its body before it reads gets the answer that refuses the body."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request

from trainer.serve.unread import DropUnread

SIZE = 32 << 20  # more than the buffers of a connection on the loopback interface


@contextmanager
def listening(*middleware: type) -> Iterator[int]:
    app = FastAPI()
    for each in middleware:
        app.add_middleware(each)

    @app.post("/refused")
    async def refuse(request: Request) -> None:
        async for _ in request.stream():
            raise HTTPException(413, "too large")

    @app.post("/unread")
    async def do_not_read() -> None:
        raise HTTPException(401, "no key")

    @app.post("/slow")
    async def give_up() -> None:
        raise HTTPException(408, "too slow")

    with socket.create_server(("127.0.0.1", 0)) as server_socket:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [server_socket]})
        thread.start()
        try:
            yield server_socket.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def sent_then_read(port: int, path: str, size: int = SIZE, announced: int | None = None, headers: str = "") -> bytes:
    """The first line of the response to a body of zeros that is sent whole before anything is read."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced or size}\r\n{headers}"
        # As Python's urllib asks. A connection that is kept goes on to read the body by itself.
        client.sendall(f"{head}Connection: close\r\n\r\n".encode() + bytes(size))
        return client.recv(1000).partition(b"\r\n")[0]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(DropUnread) as port:
        yield port


@pytest.mark.parametrize(("path", "status"), [("/refused", 413), ("/unread", 401)])
def test_the_answer_arrives(port: int, path: str, status: int) -> None:
    for _ in range(5):
        assert sent_then_read(port, path).startswith(f"HTTP/1.1 {status}".encode())


def test_without_it_the_connection_is_reset() -> None:
    """The control: else the test above could not fail."""
    with listening() as port, pytest.raises((ConnectionResetError, BrokenPipeError)):
        sent_then_read(port, "/unread")


def test_a_slow_client_is_not_waited_for_again(port: int) -> None:
    assert sent_then_read(port, "/slow", 10, announced=SIZE).startswith(b"HTTP/1.1 408")


def test_a_client_that_asks_first_is_refused_before_it_sends(port: int) -> None:
    answer = sent_then_read(port, "/unread", 0, announced=SIZE, headers="Expect: 100-continue\r\n")
    assert answer.startswith(b"HTTP/1.1 401")
