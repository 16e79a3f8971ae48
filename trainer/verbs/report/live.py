"""A live page of all runs below a directory, served on the loopback interface of this machine only."""

from __future__ import annotations

import json
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
from trainer.report.runs import Runs, version_tag

HOST = "127.0.0.1"
HTML, JSON = "text/html; charset=utf-8", "application/json"


@dataclass(frozen=True)
class Answer:
    """What a request gets. tag: of this version of a page that is asked for again and again."""

    status: HTTPStatus
    content_type: str
    text: str
    tag: str = ""


def answer(runs: Runs, target: str, held: str = "") -> Answer:
    """The answer to a GET. Args: target: path and query as in the request line. held: the browser's last tag."""
    url = urlsplit(target)
    names = parse_qs(url.query).get("run", [])
    if url.path == "/":
        return Answer(HTTPStatus.OK, HTML, template("runs.html").render(root=str(runs.root)))
    if url.path == "/api/runs":
        rows = json.dumps(runs.rows())
        tag = version_tag(rows)
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
