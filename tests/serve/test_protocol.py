"""Connections: one request at a time, nothing of another protocol, and no bytes that end a server."""

import asyncio
import logging
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from servers import read_all
from watching import wait_until

from trainer.serve.config import ServeConfig
from trainer.serve.metrics import Metrics
from trainer.serve.protocol import MAX_HEAD_BYTES, Protocol

GET = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


class Application:
    """Answers with the body that it got, once `answer` is set.

    seen: paths and headers of requests. connections: open ones. metrics: of the server.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[bytes, bytes]]] = []
        self.connections: set[Protocol] = set()
        self.metrics = Metrics()
        self.answer = threading.Event()
        self.answer.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append((scope["path"], dict(scope["headers"])))
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await asyncio.to_thread(self.answer.wait)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def listening(application: Application, **limits: float) -> Iterator[int]:
    config = ServeConfig(export="", **limits)  # pyright: ignore[reportArgumentType]
    protocol = type("Bound", (Protocol,), {"limits": config, "metrics": application.metrics})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(application, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False)
        )
        application.connections = server.server_state.connections  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            application.answer.set()
            server.should_exit = True
            thread.join()


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def port(application: Application) -> Iterator[int]:
    with listening(application, head_s=1.0, body_s=1.0) as port:
        yield port


def answer_to(port: int, *sent: bytes) -> bytes:
    """What comes until the server closes the connection, which a client of a kept one asks for at the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        for each in sent:
            client.sendall(each)
        return read_all(client)


def test_a_connection_is_kept_for_several_requests(application: Application, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        for number in range(3):
            client.sendall(GET % str(number).encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert [path for path, _ in application.seen] == ["/0", "/1", "/2"]


@pytest.mark.parametrize("behind", [GET % b"third", GET % (b"a" * 2 * MAX_HEAD_BYTES), b"\0" * 2 * MAX_HEAD_BYTES])
@pytest.mark.parametrize("together", [True, False])
def test_a_request_before_the_answer_to_the_last_one_is_not_read(
    together: bool, behind: bytes, application: Application, port: int
) -> None:
    application.answer.clear()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(GET % b"first" + (GET % b"second" if together else b""))
        wait_until(lambda: bool(application.seen), 10)
        client.sendall(behind)
        wait_until(lambda: all(each._is_deaf for each in application.connections), 10)
        application.answer.set()
        received = read_all(client)
    assert received.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in received
    assert [path for path, _ in application.seen] == ["/first"]


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_another_protocol_is_left_out(protocol: bytes, application: Application, port: int) -> None:
    upgrade = b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: %s\r\n" % protocol
    sent = b"POST /upgrade HTTP/1.1\r\n" + upgrade + b"Content-Length: 2\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        for pieces in ([sent + b"hi"], [sent[:20], sent[20:], b"h", b"i"], [GET % b"next"]):
            for piece in pieces:
                client.sendall(piece)
            received = client.recv(1000)
            assert received.startswith(b"HTTP/1.1 200 ")
            assert received.endswith(b"hi" if pieces[0] != GET % b"next" else b"\r\n\r\n")
    assert [path for path, _ in application.seen] == ["/upgrade", "/upgrade", "/next"]
    assert b"upgrade" not in application.seen[0][1]


def test_fields_behind_a_body_are_no_headers(application: Application, port: int) -> None:
    end = b"2\r\nhi\r\n0\r\nAuthorization: Bearer x\r\nHost: attacker.example\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(CHUNKED + end)
        assert client.recv(1000).endswith(b"\r\n\r\nhi")
        client.sendall(GET % b"next")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    (_, headers), _ = application.seen
    assert headers == {b"host": b"localhost", b"transfer-encoding": b"chunked"}


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET /", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n" * 100),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"b" * 1000),
        (CHUNKED + b"1;a=", b"b" * 1000),
        (CHUNKED + b"0\r\n", b"X-A: b\r\n" * 100),
        (CHUNKED + b"0\r\nX-A: ", b"b" * 1000),
    ],
    ids=["target", "fields", "field", "chunk extension", "trailer fields", "trailer field"],
)
def test_what_has_no_end_is_refused(head: bytes, piece: bytes, application: Application, port: int) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head)
        try:
            while sent < 100 * MAX_HEAD_BYTES:
                client.sendall(piece)
                sent += len(piece)
        except OSError:  # closed by the server
            pass
        received = read_all(client)
    # A client that still sends may get a reset in place of the answer.
    assert received == b"" or received.startswith(b"HTTP/1.1 431 ")
    assert sent < 100 * MAX_HEAD_BYTES
    assert b'trainer_serve_requests_total{route="other",status="431"} 1.0' in application.metrics.text()


def test_small_chunks_are_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(CHUNKED + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n")
        received = b""
        while not received.endswith(b"a" * 20_000):
            received += client.recv(65536)
    assert received.startswith(b"HTTP/1.1 200 ")


def test_no_bytes_fail_the_server(port: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(0)
    pieces = [
        b"GET ", b"POST ", b"/", b"//", b"/%", b"/%ff", b"?", b"#", b"[", b"@", b":", b" HTTP/1.1", b" HTTP/1.0",
        b"\r\n", b"\n", b"\r", b"\0", b"\xff", b"Host: localhost\r\n", b"Content-Length: 3\r\n", b"3\r\n", b"abc",
        b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\n", b"Upgrade: h2c\r\n",
        b"Expect: 100-continue\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"X-A", b": ", b" ", b"\t",
    ]  # fmt: skip
    with caplog.at_level(logging.ERROR):
        for _ in range(400):
            start = rng.choice([b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"GET /"])
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                client.sendall(start + b"".join(rng.choices(pieces, k=rng.randrange(1, 12))))
                client.shutdown(socket.SHUT_WR)
                received = read_all(client)
            assert received == b"" or received.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4", b"HTTP/1.1 100")), received
    assert not caplog.records
    assert b" 200 " in answer_to(port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") % b"")
