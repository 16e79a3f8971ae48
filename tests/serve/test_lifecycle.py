"""Overload, the end, and new exports, while clients send requests."""

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import rewrite_manifest
from onnx import numpy_helper
from servers import ANSWER_S, RunningServer, read_all, serving
from watching import wait_until

from trainer.export import load
from trainer.serve.server import SETTLE_S

# The first test of a module trains and exports, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(1200)

TEXTS = [" ".join(["film"] * length) for length in (1, 3, 9, 30)]
CLIENTS = 8
PATIENT = ["queue_s=60", "request_s=60"]  # on a machine that does much else
LOOKING = ["reload_every_s=0.05", *PATIENT]
HEAD = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Clients:
    """Threads that send one request after the other, each on a new connection or, every second one, on a kept one.

    received: complete answers by status. reset: requests without any answer. wrong: what no client should see.
    """

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.received: Counter[int] = Counter()
        self.reset: list[str] = []
        self.wrong: list[str] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._send, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(ANSWER_S)
            assert not thread.is_alive()

    def _send(self, number: int) -> None:
        kept, count, free_since = number % 2 == 0, 0, 0.0
        connection: socket.socket | None = None
        head = HEAD if kept else f"{HEAD}Connection: close\r\n"
        while not self.stopped.is_set():
            body = json.dumps({"text": TEXTS[(number + count) % len(TEXTS)]}).encode()
            count += 1
            try:
                if connection is None:
                    connection, free_since = self.server.connect(), time.monotonic()
            except ConnectionRefusedError:
                return  # it has stopped listening, and has accepted nothing
            sent_after_s = time.monotonic() - free_since
            try:
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = read_answer(connection)
            except ConnectionError:
                answer = None
            if answer is None:
                if sent_after_s < SETTLE_S / 2:  # otherwise this client was slower than a server waits at its end
                    self.reset.append(f"no answer to a request that was sent after {sent_after_s:.3f} s")
                return
            self._note(*answer)
            free_since = time.monotonic()
            if not kept or b"connection: close" in answer[1].lower():
                connection.close()
                connection = None

    def _note(self, status: int, head: bytes, body: bytes) -> None:
        self.received[status] += 1
        if status != 200:
            self.wrong.append(f"{head!r} {body!r}")


def read_answer(connection: socket.socket) -> tuple[int, bytes, bytes] | None:
    """Status, head and body; None where nothing comes. Raises: AssertionError: an answer breaks off."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            assert not received, received
            return None
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.findall(rb"content-length: (\d+)", head.lower())[0])
    while len(body) < length:
        chunk = connection.recv(65536)
        assert chunk, "the answer breaks off"
        body += chunk
    return int(head.split()[1]), head, body


@contextmanager
def clients_of(server: RunningServer) -> Iterator[Clients]:
    clients = Clients(server)
    try:
        wait_until(lambda: clients.received[200] >= 3 * CLIENTS, ANSWER_S, lambda: not clients.wrong)
        yield clients
    finally:
        clients.stop()


def end_under_load(export: Path, log: Path, drain_s: float) -> None:
    words = ["access_log=true", f"drain_s={drain_s}", *PATIENT]
    with serving(export, *words, log=log) as server, clients_of(server) as clients:
        # Inputs that are being computed or wait when the signal comes.
        body = json.dumps({"inputs": TEXTS * 16}).encode()
        waiting = [server.connect() for _ in range(4)]
        for connection in waiting:
            connection.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: server.metric("trainer_serve_queue_inputs") > 0 or clients.received[200] > 500, ANSWER_S)
        server.process.terminate()
        for connection in waiting:
            answer = read_answer(connection)
            assert answer is not None and answer[0] == 200
            assert len(json.loads(answer[2])["results"]) == len(TEXTS) * 16
            connection.close()
        assert server.process.wait(ANSWER_S) == 0, server.log
        clients.stop()
        answered = len(re.findall(r"POST /predict 200 ", server.log))
        assert answered == clients.received[200] + len(waiting), "every answer has arrived"
    assert clients.wrong == []
    assert clients.reset == []
    assert "Traceback" not in server.log


def test_the_end_loses_no_request(text_export: Path, tmp_path: Path) -> None:
    for number, drain_s in enumerate((0, 0.5)):
        end_under_load(text_export, tmp_path / str(number), drain_s)


@pytest.mark.slow
def test_twenty_ends_lose_no_request(text_export: Path, tmp_path: Path) -> None:
    for number in range(20):
        end_under_load(text_export, tmp_path / str(number), 0.1 * (number % 5))


def test_the_end_is_announced_and_a_second_signal_does_not_wait(text_export: Path, tmp_path: Path) -> None:
    with serving(text_export, "drain_s=600", log=tmp_path / "log", exit_code=-signal.SIGTERM) as server:
        assert server.get("/ready").status == 200
        server.process.terminate()
        wait_until(lambda: server.get("/ready").status == 503, ANSWER_S)
        assert "is ending" in server.get("/ready").error
        assert server.metric("trainer_serve_ready") == 0
        late = server.predict({"text": "film"})
        assert (late.status, late.headers["connection"]) == (200, "close")
        server.process.terminate()
        server.process.wait(ANSWER_S)


def test_a_full_queue_is_answered_with_429(text_export: Path, tmp_path: Path) -> None:
    words = ["max_queue=16", "max_inputs=16", "max_batch=1", *PATIENT]
    with serving(text_export, *words, log=tmp_path / "log") as server:
        before = server.rss_mib()
        # All requests wait in the kernel and arrive at once.
        os.kill(server.process.pid, signal.SIGSTOP)
        body = json.dumps({"inputs": TEXTS * 4}).encode()
        head = f"{HEAD}Connection: close\r\n"
        connections = [server.connect() for _ in range(60)]
        for connection in connections:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        os.kill(server.process.pid, signal.SIGCONT)
        answers = [read_all(connection) for connection in connections]
        statuses = Counter(int(answer.split()[1]) for answer in answers)
        assert statuses.keys() == {200, 429}, statuses
        answer = next(answer for answer in answers if b" 429 " in answer[:20])
        assert b"retry-after: 1" in answer.lower() and b"queue is full" in answer
        refused = {"route": "/predict", "status": "429"}
        wait_until(lambda: server.metric("trainer_serve_requests_total", **refused) == statuses[429], ANSWER_S)
        assert server.predict({"text": "film"}).status == 200
        assert server.rss_mib() < before + 60


def test_what_waits_for_too_long_is_answered(text_export: Path, tmp_path: Path) -> None:
    words = ["max_batch=64", "max_wait_ms=60000", "request_s=0.3", "max_connections=2"]
    with serving(text_export, *words, log=tmp_path / "log") as server:
        assert "no result within 0.3 s" in server.predict({"text": "film"}).error
        idle = [server.connect() for _ in range(2)]
        wait_until(lambda: b" 503 " in server.raw(b"")[:20], ANSWER_S)
        for connection in idle:
            connection.close()
        wait_until(lambda: server.raw(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")[9:12] == b"200", ANSWER_S)
        assert server.predict({"text": "film"}).status == 504


def test_inputs_that_expire_in_the_queue(text_export: Path, tmp_path: Path) -> None:
    with serving(text_export, "max_batch=1", "queue_s=0.001", log=tmp_path / "log") as server:
        answers = [server.predict({"inputs": TEXTS * 16}) for _ in range(3)]
        assert 503 in {answer.status for answer in answers}
        assert any("waited in the queue for more than 0.001 s" in answer.body.decode() for answer in answers)


@pytest.fixture
def copied(text_export: Path, tmp_path: Path) -> Path:
    return shutil.copytree(text_export, tmp_path / "export" / "onnx")


def replace(folder: Path, new: Path) -> None:
    """As the verb `export` does."""
    old = folder.with_name(".old")
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)


def other_model(folder: Path, place: Path) -> Path:
    """An export whose network always answers with the label that this one does not give to TEXTS[0]."""
    shutil.copytree(folder, place)
    original = load(folder)
    other = 1 - original.outputs(TEXTS[:1])[0].argmax()
    model = onnx.load(place / "model.onnx")
    (bias,) = [each for each in model.graph.initializer if each.name.endswith("classifier.bias")]
    bias.CopyFrom(numpy_helper.from_array(np.float32([100 * (1 - other), 100 * other]), bias.name))
    onnx.save(model, place / "model.onnx")
    rewrite_manifest(place)
    texts = [each["text"] for each in json.loads((place / "probes.json").read_text())]
    np.save(place / "probes.npy", load(place).outputs(texts))
    rewrite_manifest(place)
    return place


def labels_of(server: RunningServer) -> list[str]:
    return [result["label"] for result in server.predict({"inputs": TEXTS}).json["results"]]


def test_a_new_export_is_served_without_a_lost_request(copied: Path, tmp_path: Path) -> None:
    new = other_model(copied, tmp_path / "new")
    after = [result["label"] for result in load(new)(TEXTS)]
    with (
        serving(copied, *LOOKING, log=tmp_path / "log") as server,
        clients_of(server) as clients,
    ):
        assert labels_of(server)[0] != after[0]
        replace(copied, new)
        wait_until(lambda: server.metric("trainer_serve_reloads_total", outcome="served") == 1, ANSWER_S)
        seen = clients.received[200]
        wait_until(lambda: clients.received[200] > seen + 3 * CLIENTS, ANSWER_S)
        clients.stop()
        assert clients.wrong == clients.reset == []
        assert labels_of(server) == after
        assert "a new export is served" in server.log


def test_a_broken_export_is_not_served(copied: Path, image_export: Path, tmp_path: Path) -> None:
    broken = {name: shutil.copytree(copied, tmp_path / name) for name in ("damaged", "no graph")}
    graph = (copied / "model.onnx").read_bytes()
    (broken["damaged"] / "model.onnx").write_bytes(graph[:-100])
    (broken["no graph"] / "model.onnx").write_bytes(b"no graph")
    rewrite_manifest(broken["no graph"])
    broken["another network"] = other_model(copied, tmp_path / "another")
    shutil.copy(copied / "probes.npy", broken["another network"])
    rewrite_manifest(broken["another network"])
    broken["another task"] = shutil.copytree(image_export, tmp_path / "images")
    reasons = {
        "damaged": "model.onnx has another checksum",
        "no graph": "model.onnx: cannot be read",
        "another network": "outputs of its probes differ",
        "another task": "its task is cnn, and that of the served one bert",
    }
    with (
        serving(copied, *LOOKING, log=tmp_path / "log") as server,
        clients_of(server) as clients,
    ):
        expected = labels_of(server)
        for count, (name, reason) in enumerate(reasons.items(), 1):
            replace(copied, broken[name])
            wait_until(lambda: server.metric("trainer_serve_reloads_total", outcome="refused") == count, ANSWER_S)  # noqa: B023
            assert reason in server.log.split("the old one stays")[-1]
            assert labels_of(server) == expected
        clients.stop()
        assert clients.wrong == clients.reset == []
        assert clients.received[200] > 0 and server.metric("trainer_serve_reloads_total", outcome="served") == 0
