"""Why a request is not answered with a result."""

from __future__ import annotations

from collections.abc import Mapping


class RequestProblem(Exception):
    """A request that is answered with an error.

    Args: status: of HTTP. reason: one sentence for the client. headers: of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})
