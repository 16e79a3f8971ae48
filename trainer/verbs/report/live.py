"""A live page of all runs below a directory, served on the loopback interface of this machine only."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from trainer.errors import EXIT_DONE, UserError
from trainer.report import facts
from trainer.report.charts import build_charts
from trainer.report.figures import updates
from trainer.report.page import Live, render_report, signature, template
from trainer.report.read import RunData, RunReader, Stamps
from trainer.run.files import METRICS_FILE, RECORD_FILE

HOST = "127.0.0.1"
HTML, JSON = "text/html; charset=utf-8", "application/json"


class Runs:
    """All run directories below a root, each read again only where it has changed. Used by several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.readers: dict[str, RunReader] = {}
        self.cached_rows: dict[str, tuple[Stamps, dict[str, Any]]] = {}
        self.lock = threading.Lock()

    def names(self) -> list[str]:
        """Paths of the run directories, relative to the root. Links are not followed: they may lead out of it."""
        found = []
        for folder, folders, files in os.walk(self.root):
            if RECORD_FILE in files:
                found.append(os.path.relpath(folder, self.root))
                # A run holds no other runs, but it may hold thousands of files.
                folders.clear()
        return sorted(found)

    def version(self, names: Sequence[str]) -> str:
        """What changes with any file of these runs. Raises: KeyError: not one of `names()`."""
        with self.lock:
            known = set(self.names())
            for name in names:
                if name not in known:
                    raise KeyError(name)
            return _tag(repr([(name, self._reader(name).stamps()) for name in names]))

    def read(self, names: Sequence[str]) -> list[RunData]:
        """Runs by a name that `version` has found. Raises: UserError: a damaged run."""
        with self.lock:
            return [self._reader(name).read(name) for name in names]

    def rows(self) -> list[dict[str, Any]]:
        """A row of the table for each run; a damaged run has the reason in its `problem`."""
        with self.lock:
            return [self._row(name) for name in self.names()]

    def _reader(self, name: str) -> RunReader:
        return self.readers.setdefault(name, RunReader(self.root / name))

    def _row(self, name: str) -> dict[str, Any]:
        stamps = self._reader(name).stamps()
        if name not in self.cached_rows or self.cached_rows[name][0] != stamps:
            self.cached_rows[name] = stamps, self._new_row(name)
        return self.cached_rows[name][1]

    def _new_row(self, name: str) -> dict[str, Any]:
        try:
            run = self._reader(name).read(name)
        except UserError as error:
            return {"run": name, "status": "damaged", "problem": error.lines[0]}
        chosen, loss = facts.best(run), facts.train_loss(run)
        config = {group: facts.group_name(run, group) for group in ("task", "model", "data")}
        return {
            "run": name,
            "status": run.record["status"],
            **config,
            "step": run.last_step,
            "best": _finite(chosen[0] if chosen else None),
            "monitor": run.monitor[0],
            "loss": _finite(loss[1] if loss else None),
            "samples_per_s": _finite(facts.median(run, "perf/samples_per_s")),
            "start": run.attempts[-1].get("start") if run.attempts else None,
            "written": _written(run.directory),
        }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and abs(value) < float("inf") else None


def _written(run_dir: Path) -> float:
    """When the run last logged or recorded something, in seconds since 1970."""
    files = [run_dir / name for name in (METRICS_FILE, RECORD_FILE)]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


@dataclass(frozen=True)
class Answer:
    """What a request gets. tag: of this version of a page that is asked for again and again."""

    status: HTTPStatus
    content_type: str
    text: str
    tag: str = ""


def _tag(text: str) -> str:
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:16]}"'


def answer(runs: Runs, target: str, held: str = "") -> Answer:
    """The answer to a GET. Args: target: path and query as in the request line. held: the browser's last tag."""
    url = urlsplit(target)
    names = parse_qs(url.query).get("run", [])
    if url.path == "/":
        return Answer(HTTPStatus.OK, HTML, template("runs.html").render(root=str(runs.root)))
    if url.path == "/api/runs":
        rows = json.dumps(runs.rows())
        tag = _tag(rows)
        return Answer(HTTPStatus.NOT_MODIFIED if tag == held else HTTPStatus.OK, JSON, rows, tag)
    if url.path not in ("/report", "/api/points") or not names:
        return Answer(HTTPStatus.NOT_FOUND, "text/plain", "no such page")
    try:
        tag = runs.version(names)
        if tag == held:
            return Answer(HTTPStatus.NOT_MODIFIED, JSON, "", tag)
        found = runs.read(names)
    except KeyError as error:
        return Answer(HTTPStatus.NOT_FOUND, "text/plain", f"no such run: {error.args[0]}")
    except UserError as error:
        return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, "text/plain; charset=utf-8", str(error))
    charts = build_charts(found)
    stamp = signature(found, charts)
    if url.path == "/report":
        query = urlencode([("run", name) for name in names])
        return Answer(HTTPStatus.OK, HTML, render_report(found, Live(f"/api/points?{query}", stamp)))
    points = {
        "signature": stamp,
        "last_step": max(run.last_step for run in found),
        "charts": updates(charts),
        "figures": [vars(figure) for figure in facts.key_figures(found[0])] if len(found) == 1 else [],
    }
    return Answer(HTTPStatus.OK, JSON, json.dumps(points), tag)


class Server(ThreadingHTTPServer):
    """Serves pages of runs to browsers on this machine."""

    daemon_threads = True

    def __init__(self, root: Path, port: int) -> None:
        super().__init__((HOST, port), Handler)
        self.runs = Runs(root)

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a browser on this machine."""
        # Another site can make its own name point to 127.0.0.1 and read the answers, but its name is then the host.
        if self.headers.get("Host") not in {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}:
            self._send(Answer(HTTPStatus.FORBIDDEN, "text/plain", "wrong host"))
            return
        self._send(answer(self.server.runs, self.path, self.headers.get("If-None-Match", "")))

    def _send(self, found: Answer) -> None:
        content = b"" if found.status == HTTPStatus.NOT_MODIFIED else found.text.encode()
        self.send_response(found.status)
        if found.tag:
            self.send_header("ETag", found.tag)
        self.send_header("Content-Type", found.content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        # A browser may close its page at any time.
        with suppress(ConnectionError):
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed: an open page asks twice a second."""


def serve(root: Path, port: int) -> int:
    """Serve until Ctrl-C. Returns: exit code. Raises: UserError: no such directory, or the port is taken."""
    if not root.is_dir():
        raise UserError(f"root={root}: no such directory; train a run first, or choose the directory that holds runs")
    try:
        server = Server(root, port)
    except OSError as error:
        raise UserError(f"port={port}: {error.strerror}; choose another, or 0 for a free one") from error
    print(f"{server.url}  runs below {root}; Ctrl-C ends it", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return EXIT_DONE
