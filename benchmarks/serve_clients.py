"""A server of its own, and closed-loop clients: each sends its next request when it has the answer to the last."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.bert.intents import intent_rows


@dataclass(frozen=True)
class Exchange:
    """status: of the answer; 0 where the connection broke. latency_s: until its last byte. answer: its JSON."""

    status: int
    latency_s: float
    answer: Any


@dataclass(frozen=True)
class Served:
    """A server process."""

    process: subprocess.Popen[str]
    port: int

    def rss_mib(self) -> float:
        """Memory of the process."""
        (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(line) / 1024


@contextmanager
def served(export: Path, *words: str) -> Iterator[Served]:
    """A server on a free port, from when it is ready."""
    command = [sys.executable, "-m", "trainer", "serve", f"export={export}", "port=0", "drain_s=0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.match(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        if found is None:
            raise SystemExit(process.wait())
        yield Served(process, int(found[1]))
        process.terminate()
        if process.wait() != 0:
            raise SystemExit(f"the server ended with {process.returncode}")


def questions(count: int) -> list[bytes]:
    """Bodies of requests with questions of customers, 3 to 14 words, as the set `intents` has them."""
    rows = intent_rows({"train": count})["train"]
    return [json.dumps({"text": text}).encode() for text, _ in rows]


def drive(port: int, bodies: Sequence[bytes], clients: int, seconds: float | None = None) -> list[Exchange]:
    """Send bodies from several clients, each once, or over and over for some seconds. Returns: in order of sending."""
    return asyncio.run(_drive(port, bodies, clients, seconds))


async def _drive(port: int, bodies: Sequence[bytes], clients: int, seconds: float | None) -> list[Exchange]:
    end = None if seconds is None else time.perf_counter() + seconds
    exchanges: dict[int, Exchange] = {}
    sent = 0

    async def client() -> None:
        """Send the next body that no client has sent, until there is none or time is up."""
        nonlocal sent
        stream = None
        while sent < len(bodies) if end is None else time.perf_counter() < end:
            number, sent = sent, sent + 1
            start = time.perf_counter()
            try:
                stream = stream or await asyncio.open_connection("127.0.0.1", port)
                status, answer = await _exchange(*stream, bodies[number % len(bodies)])
            except (OSError, asyncio.IncompleteReadError):
                status, answer, stream = 0, None, None
            exchanges[number] = Exchange(status, time.perf_counter() - start, answer)

    await asyncio.gather(*(client() for _ in range(clients)))
    return [exchanges[number] for number in sorted(exchanges)]


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> tuple[int, Any]:
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    (length,) = re.findall(rb"content-length: (\d+)", answer)
    return int(answer.split(b" ", 2)[1]), json.loads(await reader.readexactly(int(length)))
