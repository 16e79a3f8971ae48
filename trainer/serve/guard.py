"""What holds for every request, whatever its route: who may ask, what is counted, and headers of answers."""

from __future__ import annotations

import hmac
import logging
import time
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.errors import printable
from trainer.serve.service import Service

ACCESS = logging.getLogger("trainer.serve.access")
KEY_ROUTES = ("/predict", "/metrics")
# Of the labels of metrics: anything else would let a client make as many as it likes.
ROUTES = ("/", "/predict", "/model", "/health", "/ready", "/metrics", "/openapi.json", "/docs")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
# The pages have their scripts and styles inside, and ask nobody else.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
RAW_HEADERS = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self.is_local = is_loopback(service.config.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        scope["state"]["start"] = start

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *RAW_HEADERS]
                if self.service.draining:  # so that the client's next request goes to another server
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        try:
            await (refusal or self.app)(scope, receive, send_with_headers)
        finally:
            self._record(scope, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        """The answer to a request that goes no further."""
        if scope["http_version"] not in ("1.0", "1.1"):
            return _error(400, "only the versions 1.0 and 1.1 of HTTP are spoken here", {"connection": "close"})
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy that believes the one, before a server that believes the other, lets a second request through.
            return _error(400, "Content-Length and Transfer-Encoding exclude each other", {"connection": "close"})
        name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self.is_local and name.lower() not in LOOPBACK_NAMES and headers.get("host") not in LOOPBACK_NAMES:
            # Another site can give its own name the address 127.0.0.1, and its pages could read the answers.
            return _error(421, "this server listens on the loopback interface; its host is localhost or 127.0.0.1")
        key = self.service.api_key
        if key is not None and scope["path"] in KEY_ROUTES:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), key.encode())
            if scheme.lower() != "bearer" or not is_right:
                reason = "a valid key is needed, in the header Authorization: Bearer KEY"
                return _error(401, reason, {"www-authenticate": "Bearer"})
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in ROUTES else "other"
        self.service.metrics.requests.labels(route, str(status)).inc()
        self.service.metrics.latency.labels(route).observe(seconds)
        if self.service.config.access_log:
            client = scope["client"][0] if scope.get("client") else "-"
            line = f"{client} {scope['method']} {scope['path'][:200]} {status} {1000 * seconds:.1f} ms"
            ACCESS.info(printable(line, kept=""))


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)
