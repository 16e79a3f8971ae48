"""A limit on what a client may send. FastAPI's own, max_body_size, does not say in its answer what the limit is."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Refuse a longer body with 413 while it is read, whether it announces its length or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                # FastAPI passes this exception on, and makes 400 of any other while it reads a body.
                raise HTTPException(413, f"body: longer than {self.max_bytes} bytes")
            return message

        await self.app(scope, counted, send)
