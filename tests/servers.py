"""Real servers of the verb `serve` on free ports, and what a client sends them."""

import http.client
import json
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

START_S = 240
ANSWER_S = 60


class Answer:
    """Of a request: status, headers in lower case, and the body."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, {name.lower(): value for name, value in headers.items()}, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The reason; the body has to be nothing else."""
        (name,) = self.json
        assert name == "error"
        assert "Traceback" not in self.json[name] and ".py" not in self.json[name]
        return self.json[name]


class RunningServer:
    """A server process that is ready. log: its stderr, readable at any time."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process, self.port, self.log_file = process, port, log

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_S)

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Answer:
        """Headers have _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def predict(self, value: Any, **headers: str) -> Answer:
        """POST /predict of a value as JSON."""
        return self.ask("POST", "/predict", json.dumps(value), **{"Content_Type": "application/json", **headers})

    def raw(self, sent: bytes) -> bytes:
        """Send bytes as they are. Returns: everything that comes until the server closes the connection."""
        with self.connect() as client:
            client.sendall(sent)
            return read_all(client)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels."""
        families = text_string_to_metric_families(self.get("/metrics").body.decode())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def rss_mib(self) -> float:
        """Memory of the process."""
        (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(line) / 1024


def read_all(client: socket.socket) -> bytes:
    """Until the other end closes, which may be by a reset."""
    received = b""
    while True:
        try:
            chunk = client.recv(65536)
        except ConnectionResetError:
            return received
        if not chunk:
            return received
        received += chunk


@contextmanager
def serving(
    folder: Path, *words: str, log: Path, env: Mapping[str, str] | None = None, exit_code: int = 0
) -> Iterator[RunningServer]:
    """A server of an export that is ready; after the block it is asked to end, and ends with `exit_code`."""
    command = [sys.executable, "-m", "trainer", "serve", f"export={folder}", "port=0", "drain_s=0", *words]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
        ended(process),
    ):
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if ready else ""
        found = re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)
        assert found, f"{line}\n{log.read_text()}"
        yield RunningServer(process, int(found[1]), log)
        process.terminate()
        assert process.wait(ANSWER_S) == exit_code, log.read_text()


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """A process that does not outlive the block, whatever happens in it."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()


def multipart(files: Sequence[bytes], field: str = "image", boundary: str = "frontier") -> tuple[bytes, str]:
    """Returns: body, content type."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{number}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for number, content in enumerate(files)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
