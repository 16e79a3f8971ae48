"""Requests at a fixed rate to a server over HTTP, whether it keeps up or not (an open loop).

A client that waits for an answer before it sends the next request slows down with the server, and so leaves out the
requests that would have waited longest (coordinated omission). Here each request has an intended time, and its latency
counts from there.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from trainer.errors import UserError

# A rate is sustained if so large a share of requests is answered, and answers come at so large a share of the rate.
LEAST_ANSWERED, LEAST_RATE = 0.99, 0.95
RULE = (
    f"a rate is sustained if at least {LEAST_ANSWERED:.0%} of the requests are answered with 200 and the answers come "
    f"at {LEAST_RATE:.0%} of the rate or more; saturation is the highest sustained rate"
)
OK, TOO_MANY = 200, 429
LEAD_S = 0.05  # before the first request, so that it is not late
KEEP_ALIVE_S = 2.0  # of an idle connection; uvicorn closes one after 5 s, and a request may meet that


@dataclass(frozen=True)
class Request:
    """What is sent to /predict. body: with its content_type."""

    body: bytes
    content_type: str


@dataclass(frozen=True)
class Offered:
    """What became of the requests that were sent at one rate.

    sent, answered, refused, failed: numbers of requests; answered with 200, refused with 429, failed otherwise.
    answers_per_s: between the first and the last answer. p50_ms, p95_ms, p99_ms: latency of answered requests, from the
    intended time of sending to the last byte; NaN where there are none. late_ms: 99th percentile of how much later than
    intended a request was sent. client_share: CPU time of this process over wall time. failures: how often, by reason.
    """

    rate_per_s: float
    sent: int
    answered: int
    refused: int
    failed: int
    answers_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    late_ms: float
    client_share: float
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_sustained(self) -> bool:
        """See RULE."""
        return self.answered >= LEAST_ANSWERED * self.sent and self.answers_per_s >= LEAST_RATE * self.rate_per_s


@dataclass(frozen=True)
class _Outcome:
    """Of a request.

    outcome: status, or what went wrong. late_s, latency_s: after the intended time. at_s: of its end.
    """

    outcome: int | str
    late_s: float
    latency_s: float
    at_s: float


def offer(
    url: str, requests: Sequence[Request], rate_per_s: float, duration_s: float, timeout_s: float, key: str | None
) -> Offered:
    """Send requests in turn at a fixed rate. Args: timeout_s: of each. key: of the server, where it asks for one."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    count = max(2, round(rate_per_s * duration_s))
    outcomes = asyncio.run(_send_all(url, requests, count, 1 / rate_per_s, timeout_s, key))
    share = (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
    return summarise(outcomes, rate_per_s, share)


def check(url: str, requests: Sequence[Request], timeout_s: float, key: str | None) -> float:
    """Send each request once, one after the other. Returns: answers a second.

    Raises: UserError: the server cannot be reached or does not answer one of them with 200.
    """
    started_s = time.perf_counter()

    async def send() -> None:
        async with _session(timeout_s, key) as session:
            for request in requests:
                async with session.post(f"{url}/predict", data=request.body, headers=_headers(request)) as response:
                    if response.status != OK:
                        reason = " ".join((await response.text()).split())[:160]
                        raise UserError(f"{url}: POST /predict answers {response.status}: {reason}")
                    await response.read()

    try:
        asyncio.run(send())
    except (aiohttp.ClientError, OSError) as error:
        raise UserError(f"url={url}: no server answers ({error or type(error).__name__})") from error
    return len(requests) / (time.perf_counter() - started_s)


def summarise(outcomes: Sequence[_Outcome], rate_per_s: float, client_share: float) -> Offered:
    """Counts and percentiles of one rate."""
    answered = [each for each in outcomes if each.outcome == OK]
    failures = Counter(str(each.outcome) for each in outcomes if each.outcome not in (OK, TOO_MANY))
    ends_s = sorted(each.at_s for each in answered)
    # Of the intervals between answers: the latency of the first one is no lack of throughput.
    answers_per_s = (len(ends_s) - 1) / (ends_s[-1] - ends_s[0]) if len(ends_s) > 1 else 0.0
    latencies_ms = [1000 * each.latency_s for each in answered] or [float("nan")]
    p50, p95, p99 = (float(value) for value in np.quantile(latencies_ms, [0.5, 0.95, 0.99]))
    return Offered(
        rate_per_s,
        sent=len(outcomes),
        answered=len(answered),
        refused=sum(each.outcome == TOO_MANY for each in outcomes),
        failed=failures.total(),
        answers_per_s=answers_per_s,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        late_ms=1000 * float(np.quantile([each.late_s for each in outcomes], 0.99)),
        client_share=client_share,
        failures=failures,
    )


async def _send_all(
    url: str, requests: Sequence[Request], count: int, interval_s: float, timeout_s: float, key: str | None
) -> list[_Outcome]:
    async with _session(timeout_s, key) as session:
        start_s = time.perf_counter() + LEAD_S
        tasks = []
        for number in range(count):
            due_s = start_s + number * interval_s
            # Also where it is late: answers are read between two requests.
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            request = requests[number % len(requests)]
            tasks.append(asyncio.create_task(_send(session, url, request, due_s)))
        return await asyncio.gather(*tasks)


async def _send(session: aiohttp.ClientSession, url: str, request: Request, due_s: float) -> _Outcome:
    late_s = time.perf_counter() - due_s
    try:
        async with session.post(f"{url}/predict", data=request.body, headers=_headers(request)) as response:
            await response.read()
            outcome: int | str = response.status
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        outcome = type(error).__name__
    ended_s = time.perf_counter()
    return _Outcome(outcome, late_s, ended_s - due_s, ended_s)


def _session(timeout_s: float, key: str | None) -> aiohttp.ClientSession:
    """As many connections as there are requests under way."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    return aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)


def _headers(request: Request) -> dict[str, str]:
    return {"Content-Type": request.content_type}
