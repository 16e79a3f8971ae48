"""HTTP/1.1 connections: uvicorn's, with deadlines, bounds, and no leniency in heads.

A connection has one request at a time. What a client sends before it has the answer to its last request is not read,
and the connection is closed after that answer, as RFC 9112 (9.3.2) allows.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, ClassVar, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trainer.serve.config import Limits
from trainer.serve.metrics import Metrics

# Of a head, and of what else is between the bytes of a body: sizes of chunks, and fields behind the last one.
MAX_HEAD_BYTES = 2**14
TARGET = re.compile(rb"/[!-~]*")
# After an answer that came before its body had: as long as it takes a client to read it.
LINGER_S = 5.0
PHRASES = {
    400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable",
}  # fmt: skip


class _Refused(Exception):
    """Why a request is not read further. status: of the answer; None where there is one on its way already."""

    def __init__(self, status: int | None, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Protocol(HttpToolsProtocol):
    """One connection. uvicorn itself waits for a head or a body for ever, and bounds neither heads nor connections."""

    limits: ClassVar[Limits]
    metrics: ClassVar[Metrics]
    # What the client has to send next; None while it waits for an answer.
    _awaited: Literal["head", "body"] | None = "head"
    _watched: Literal["head", "body"] | None = None  # what the deadline is for
    _deadline: asyncio.TimerHandle | None = None
    _raw_bytes = 0  # since the end of a head, or the last bytes of a body
    _is_deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start to wait for a head, or refuse a connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "too many connections")
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read what has arrived."""
        if self._is_deaf or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._raw_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            refused = error.__context__
            if not isinstance(refused, _Refused):
                raise
            self._is_deaf = True
            if refused.status is not None:
                self._refuse(refused.status, str(refused))
        except httptools.HttpParserError as error:
            self._refuse(400, f"the request is damaged: {error}")
        else:
            if self._raw_bytes > MAX_HEAD_BYTES:
                between = "and so has what comes between those of a body"
                self._refuse(431, f"a head has at most {MAX_HEAD_BYTES} bytes, {between}")
        self._watch()

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            raise _Refused(None, "the last request has no answer yet")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a field of a head; those behind a body are left out, since the request has been looked at."""
        if self._awaited == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """httptools: the end of a head. Starts the application, unless the head can be read in two ways."""
        self._raw_bytes = 0
        self._check_head()
        if not self.parser.should_upgrade():  # else it is read again
            self._awaited = "body"
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """httptools: bytes of a body."""
        self._raw_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools: the end of a request."""
        if self.parser.should_upgrade():
            return
        self._raw_bytes = 0
        self._awaited = "head" if self.cycle.response_complete else None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The cycle: the answer is written."""
        super().on_response_complete()
        if self._awaited is None:
            self._awaited = "head"
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_watching()
        super().connection_lost(exc)

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Read a request as if it did not ask for another protocol, since none is spoken here.

        Some clients ask in each request (Java's for HTTP/2), and httptools gives up what is behind the head.
        """
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's; see on_message_begin
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _check_head(self) -> None:
        """llhttp has checked each line by itself, and that there is no second length. Raises: _Refused."""
        size = len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            raise _Refused(431, f"the head has more than {MAX_HEAD_BYTES} bytes")
        if not TARGET.fullmatch(self.url) or self.parser.get_method() == b"CONNECT":
            raise _Refused(400, "the target is a path that begins with /, in ASCII")
        hosts = sum(name == b"host" for name, _ in self.headers)
        is_new = self.parser.get_http_version() == "1.1"
        if hosts > 1 or (is_new and not hosts):
            raise _Refused(400, "there is one header Host")
        encodings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if encodings and (encodings != [b"chunked"] or not is_new):
            raise _Refused(400, "the only Transfer-Encoding is chunked, in version 1.1 of HTTP")

    def _watch(self) -> None:
        """Set the deadline of what the client has to send next."""
        if self._awaited == self._watched or self.transport.is_closing():
            return
        self._stop_watching()
        self._watched = self._awaited
        if self._awaited == "head":
            self._deadline = self.loop.call_later(self.limits.head_s, self._expire)
        elif self._awaited == "body":  # the application answers with 408 after body_s
            self._deadline = self.loop.call_later(self.limits.body_s + LINGER_S, self._expire)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._watched = None

    def _expire(self) -> None:
        if self._watched == "head" and self._raw_bytes:
            self._refuse(408, f"the head of the request has not arrived within {self.limits.head_s:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer without the application, unless an answer is on its way, and close."""
        self.metrics.requests.labels("other", str(status)).inc()
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        is_unanswered = cycle is None or cycle.response_complete or not cycle.response_started
        if is_unanswered and not self.transport.is_closing():
            body = json.dumps({"error": reason}).encode()
            head = f"HTTP/1.1 {status} {PHRASES[status]}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
