"""HTTP/1.1 connections: uvicorn's, with deadlines, a bound on their number, and no leniency in heads."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trainer.serve.config import Limits
from trainer.serve.metrics import Metrics

# h11 reads a bare line feed as the end of a line, and joins folded lines; a proxy in front may see other headers there.
END_OF_HEAD = re.compile(rb"\n\r?\n")
BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
FOLDED_LINE = re.compile(rb"\n[ \t]")
# After an answer that came before its body had: as long as it takes a client to read it.
LINGER_S = 5.0
PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Protocol(H11Protocol):
    """One connection. uvicorn itself waits for a head or a body for ever, and answers a damaged head with text."""

    limits: ClassVar[Limits]
    metrics: ClassVar[Metrics]
    _deadline: asyncio.TimerHandle | None = None
    _awaited: Any = None  # what the deadline is for: a state of the client in h11

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start to wait for a head, or refuse a connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "too many connections")
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read what has arrived."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def handle_events(self) -> None:
        """Act on what has been read, if it is unambiguous."""
        if self.conn.their_state is h11.IDLE:
            buffered, _ = self.conn.trailing_data
            head = buffered[: end.end()] if (end := END_OF_HEAD.search(buffered)) else buffered
            if BARE_LINE_FEED.search(head) or FOLDED_LINE.search(head):
                self.send_400_response("lines of the head end with CR LF and are not folded")
                return
        super().handle_events()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_watching()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP/1.1, in the form of all errors."""
        self._refuse(400, msg)

    def _watch(self) -> None:
        """Set the deadline of what the client has to send next."""
        state = self.conn.their_state
        if state is self._awaited:
            return
        self._stop_watching()
        self._awaited = state
        if state is h11.IDLE:
            self._deadline = self.loop.call_later(self.limits.head_s, self._expire)
        elif state is h11.SEND_BODY:  # the application answers with 408 after body_s
            self._deadline = self.loop.call_later(self.limits.body_s + LINGER_S, self._expire)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._awaited = None

    def _expire(self) -> None:
        if self._awaited is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, f"the head of the request has not arrived within {self.limits.head_s:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer without the application, unless an answer is on its way, and close."""
        self.metrics.requests.labels("other", str(status)).inc()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        is_unanswered = self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        if is_unanswered and not self.transport.is_closing():
            body = json.dumps({"error": reason}).encode()
            head = f"HTTP/1.1 {status} {PHRASES[status]}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
