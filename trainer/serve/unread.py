"""A client that is still sending when it is refused has to read the refusal.

A server that answers before it has read the body, and then closes, resets the connection: clients report a broken
pipe instead of the answer. So what is left of a body is read and dropped, within bounds, before the answer starts.
nginx calls this lingering close.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UNREAD_BYTES = 64 << 20
MAX_UNREAD_S = 5.0
TOO_SLOW = 408


class DropUnread:
    """ASGI middleware. Its routes may answer at any moment; the client gets the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # A client that expects 100 sends the body only when it is asked to.
        more = ("content-length" in headers or "transfer-encoding" in headers) and "expect" not in headers

        async def watched() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drop() -> None:
            left = MAX_UNREAD_BYTES
            while more and left > 0:
                left -= len((await watched()).get("body", b""))

        async def send_after_body(message: Message) -> None:
            # The answer to a client that is too slow must not wait for it again.
            if message["type"] == "http.response.start" and more and message["status"] != TOO_SLOW:
                with suppress(TimeoutError):
                    async with asyncio.timeout(MAX_UNREAD_S):
                        await drop()
            await send(message)

        await self.app(scope, watched, send_after_body)
