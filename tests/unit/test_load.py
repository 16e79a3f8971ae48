"""The load test, against small real servers whose rates and stalls are known."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from trainer.bench.load import OK, Request, _Outcome, offer, summarise
from trainer.bench.saturation import find_saturation
from trainer.cli import main

CAPACITY_PER_S = 20.0
STALL_S = 1.0
BODY = [Request(b'{"n": 1, "seed": 0}', "application/json")]


class Station:
    """One request after the other, each for 1 / CAPACITY_PER_S, on a schedule that no delay of the machine moves."""

    def __init__(self) -> None:
        self.free_at_s, self.seen, self.under_way, self.stalled_until_s = 0.0, 0, 0, 0.0

    async def queue(self, request: web.Request) -> web.Response:
        assert (await request.json()).keys() == {"n", "seed"}
        self.free_at_s = max(self.free_at_s, time.perf_counter()) + 1 / CAPACITY_PER_S
        await asyncio.sleep(self.free_at_s - time.perf_counter())
        return web.json_response({"results": [], "latency_ms": 1.0})

    async def stall(self, request: web.Request) -> web.Response:
        """The 50th request and all that arrive in the next second are answered when that second is over."""
        self.seen += 1
        if self.seen == 50:
            self.stalled_until_s = time.perf_counter() + STALL_S
        await asyncio.sleep(max(0.0, self.stalled_until_s - time.perf_counter()))
        return web.json_response({})

    async def full(self, request: web.Request) -> web.Response:
        """Every second request is refused, and every fourth fails."""
        self.seen += 1
        status = 200 if self.seen % 2 else 429 if self.seen % 4 else 500
        return web.json_response({"error": "planted"}, status=status)

    async def model(self, request: web.Request) -> web.Response:
        return web.json_response({"task": "dcgan", "kind": "noise", "format": "onnx", "labels": None})


@contextmanager
def serving(behaviour: str) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    station, started = Station(), threading.Event()
    address: list[str] = []

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/predict", getattr(station, behaviour))
        app.router.add_get("/model", station.model)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()
        await stop.wait()
        await runner.cleanup()

    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert started.wait(30)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.mark.slow
def test_saturation_is_found_where_the_server_has_it() -> None:
    with serving("queue") as url:
        result = find_saturation(lambda rate: offer(url, BODY, rate, 2.5, 20, None), 8.0)
    assert result.highest is not None and result.lowest is not None and result.at_half is not None
    # Refinement ends within 9 %, and 95 % of a rate sustains it.
    assert result.highest.rate_per_s == pytest.approx(CAPACITY_PER_S, rel=0.15)
    assert result.lowest.rate_per_s == pytest.approx(CAPACITY_PER_S, rel=0.25)
    assert result.lowest.rate_per_s <= 1.1 * result.highest.rate_per_s
    assert result.at_half.rate_per_s == result.highest.rate_per_s / 2
    # Above saturation the queue grows for as long as requests are sent; the last one waits for what is too much.
    above = max(result.rows, key=lambda row: row.rate_per_s)
    assert above.answers_per_s == pytest.approx(CAPACITY_PER_S, rel=0.1)
    waits_s = above.sent / CAPACITY_PER_S - above.sent / above.rate_per_s
    assert above.p99_ms == pytest.approx(1000 * waits_s, rel=0.25)


def test_a_stall_counts_for_every_request_that_it_keeps_waiting() -> None:
    """A client that waits for answers would see one slow request of 200."""
    with serving("stall") as url:
        row = offer(url, BODY, 100, 2.0, 20, None)
    assert (row.sent, row.answered) == (200, 200)
    # Half of the requests arrive in the stall, whose waits are spread evenly from a second to nothing.
    assert row.p95_ms == pytest.approx(1000 * STALL_S * 0.9, rel=0.2)


def test_refusals_and_errors_are_counted_apart() -> None:
    with serving("full") as url:
        row = offer(url, BODY, 100, 1.0, 20, None)
    assert (row.sent, row.answered, row.refused, row.failed) == (100, 50, 25, 25)
    assert row.failures == {"500": 25} and not row.is_sustained
    row = offer(url, BODY, 50, 0.2, 20, None)  # it is closed now
    assert (row.answered, row.failed, row.answers_per_s) == (0, 10, 0.0)
    assert list(row.failures) == ["ClientConnectorError"] and not row.is_sustained


def test_percentiles_and_rates_are_those_of_the_definition() -> None:
    draw = np.random.default_rng(2)
    latencies_s = draw.exponential(0.05, 1000)
    outcomes = [_Outcome(OK, 0.001, latency, 0.01 * number) for number, latency in enumerate(latencies_s)]
    row = summarise(outcomes, 100.0, 0.1)
    in_order = np.sort(1000 * latencies_s)
    for found, share in ((row.p50_ms, 0.5), (row.p95_ms, 0.95), (row.p99_ms, 0.99)):
        assert in_order[int(share * 999)] <= found <= in_order[int(share * 999) + 1]
    assert row.answers_per_s == pytest.approx(100.0) and row.is_sustained
    assert not summarise(outcomes, 106.0, 0.1).is_sustained, "answers come at 94 % of the rate"
    assert not summarise([*outcomes, *[_Outcome(429, 0.0, 0.1, 1.0)] * 11], 100.0, 0.1).is_sustained


def test_the_verb_writes_table_plot_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving("queue") as url:
        assert main(["bench", "serve", f"url={url}", "rates=60,10", "seconds=1", f"out={tmp_path}"]) == 0
        printed = capsys.readouterr().out
        assert main(["bench", "serve", f"url={url}", "max_batch=1"]) == 2
    assert "saturation: 10 requests a second; 60 were not sustained" in printed
    assert "at 50 % of saturation, 5 requests a second: p50 " in printed and "client at saturation: " in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["rate_per_s"] for row in result["rows"]] == [10, 60, 5]
    assert result["highest"]["rate_per_s"] == 10 and result["facts"]["model"]["kind"] == "noise"
    page = (tmp_path / "index.html").read_text()
    assert "99% of the requests are answered" in page and "data:image/png;base64," in page
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "result.md", "result.png", "result.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs url=http://HOST:PORT"),
        (["url=http://127.0.0.1:9"], "no server of this package answers at /model"),
        (["url=127.0.0.1:8000"], "of the form http://HOST:PORT"),
        (["url=http://127.0.0.1:9", "rates=fast"], "rates=fast: a number from 1 on"),
        (["run=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_user_errors(
    words: list[str], message: str, in_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *words]) == 2
    error = capfd.readouterr().err
    assert message in error and len(error.splitlines()) <= 3
