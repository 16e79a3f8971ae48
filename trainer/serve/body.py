"""Reading bodies: not more than a client may send, not for longer than it may take, and not too many at once."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from trainer.serve.config import MIB, Limits
from trainer.serve.problems import RequestProblem

# All bodies that are being read or prepared, in units of the largest one.
LARGEST_AT_ONCE = 8


class Bodies:
    """Memory for the bodies of all requests."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.max_bytes = int(limits.max_body_mib * MIB)
        self.free_bytes = LARGEST_AT_ONCE * self.max_bytes

    def reserve(self, request: Request) -> int:
        """Memory for a body, to be given to `release`. Returns: bytes.

        Raises: RequestProblem: the body is too large, or there are too many at once.
        """
        announced = request.headers.get("content-length")
        size = self.max_bytes if announced is None else int(announced)
        if size > self.max_bytes:
            raise self._too_large()
        if size > self.free_bytes:
            raise RequestProblem(429, "too many large requests at once; try again later", {"Retry-After": "1"})
        self.free_bytes -= size
        return size

    def release(self, size: int) -> None:
        """Give memory back."""
        self.free_bytes += size

    async def read(self, request: Request) -> bytes:
        """The whole body. Raises: RequestProblem: it is too large, too slow, or the client has gone."""
        try:
            async with asyncio.timeout(self.limits.body_s):
                chunks, size = [], 0
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.max_bytes:
                        raise self._too_large()
                    chunks.append(chunk)
                return b"".join(chunks)
        except TimeoutError as error:
            reason = f"the body has not arrived within {self.limits.body_s:g} s"
            raise RequestProblem(408, reason, {"Connection": "close"}) from error
        except ClientDisconnect as error:
            raise RequestProblem(400, "the connection ended before the body did") from error

    def _too_large(self) -> RequestProblem:
        return RequestProblem(413, f"the body is larger than {self.limits.max_body_mib:g} MiB")
