"""What the services of the applications have in common: the address, who is answered, and the form of errors."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer import UserError
from trainer.serve.unread import DropUnread

LOOPBACK = ("127.0.0.1", "localhost")
# Scripts and styles come from the service only, so a text with markup in it cannot run anything.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def protect(app: FastAPI, host: str, max_body_bytes: int, headers: Mapping[str, str] = HEADERS) -> None:
    """Give every answer the headers, and every error the form {"error": ...}.

    Args: host: that the service is bound to; on loopback no other name is answered. max_body_bytes: of a request.
    """
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    # A page elsewhere whose name is made to point at this machine cannot reach the service.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK) if host in LOOPBACK else ["*"])

    @app.middleware("http")
    async def with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(headers)
        return response

    app.add_middleware(DropUnread)
    app.exception_handler(RequestValidationError)(_name_bad_input)
    # That of starlette: routes that do not exist raise it, and FastAPI's is derived from it.
    app.exception_handler(AnyHTTPException)(_as_error)


class BodyLimit:
    """Refuse a longer body with 413 while it is read, whether it announces its length or not.

    FastAPI's own limit, max_body_size, does not say what the limit is, and answers before `DropUnread` reads the rest.
    """

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


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket, the address of which is printed. Raises: UserError: the address cannot be used."""
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise UserError(f"host={host} port={port}: {error.strerror or error}") from error
    with listener:
        if host not in LOOPBACK:
            print(f"host={host}: other machines can reach the page, which has no login")
        print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
        yield listener


async def _name_bad_input(request: Request, error: Exception) -> JSONResponse:
    """Name what is wrong, without repeating a value that may be a million characters long."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "path", "query"))
    return JSONResponse({"error": f"{place or 'body'}: {first['msg'].removeprefix('Value error, ')}"}, 422)


async def _as_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)
