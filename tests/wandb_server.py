"""A stand-in for the W&B server on loopback, as far as the pinned client needs one: runs, histories, files, artifacts.

    with WandbServer() as server, server.client(monkeypatch):
        ...
        server.history("0badcafe")

It answers by the name of the GraphQL operation. A history is kept by offset, as W&B's server keeps it: a line that is
sent to an offset again replaces what was there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest

# What happens to every request: no answer, a connection that is closed, or a status.
Fault = Literal["hangs", "gone", "401", "429", "500"]

ENTITY = "loopback"
KEY = "0" * 40
HISTORY, EVENTS, SUMMARY = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json"


@dataclass
class ServerRun:
    """What the server has of a run.

    settings: of the last UpsertBucket. lines: of each streamed file, by offset. files: content by name. sent: history
    lines in the order in which they came, repeated ones included.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def streamed(self, name: str) -> list[str]:
        """The lines of a streamed file in the order of their offsets."""
        return [line for _, line in sorted(self.lines.get(name, {}).items())]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Its history rows."""
        return [json.loads(line) for line in self.streamed(HISTORY)]

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary."""
        lines = self.streamed(SUMMARY)
        return json.loads(lines[-1]) if lines else {}

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration as it was last sent."""
        return json.loads(self.settings.get("config") or "{}")


@dataclass
class ServerArtifact:
    """name: of the collection. entries: names of the files, from the manifest."""

    name: str
    kind: str
    digest: str
    run: str
    entries: list[str] = field(default_factory=list)
    committed: bool = False


class WandbServer(ThreadingHTTPServer):
    """Serves until the end of the `with` block.

    requests: operations and paths in the order in which they came. fault: see Fault. refuses_files: uploads of files
    get status 500.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: dict[str, ServerRun] = {}
        self.artifacts: list[ServerArtifact] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.fault: Fault | None = None
        self.refuses_files = False
        self.ended = threading.Event()
        self.guard = threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> WandbServer:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on, and close those that are open at their next request."""
        self.fault = "gone"
        self.ended.set()
        self.shutdown()
        self.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to use this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    @contextmanager
    def client(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """This process uses the server; its client starts anew, since it keeps what it has read of the environment."""
        import wandb

        wandb.teardown()
        with monkeypatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            yield
            wandb.teardown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed has closed its connection; any other fault here is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, operation: str, text: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation; an operation that is not known here has none."""
        method = getattr(self, f"_{re.sub(r'(?<!^)(?=[A-Z])', '_', operation).lower()}", None)
        return {} if method is None else method(variables)

    # ---- workspaces

    def _get_default_entity(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": ENTITY}}

    def _upsert_view2(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.views
        if inserted == ("id" in variables):
            return {}  # a view is changed by its id, which the client has of an earlier answer
        self.views[name] = variables
        return {"upsertView": {"view": {"id": f"view-{name}", "name": name}, "inserted": inserted}}

    # ---- runs

    def _viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams}
        return {"viewer": viewer}

    def _server_features_query(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _upsert_bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, ServerRun())
        run.settings |= {key: value for key, value in variables.items() if value is not None}
        project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": ENTITY}}
        bucket = {
            "id": base64.b64encode(f"Run:v1:{name}:p:{ENTITY}".encode()).decode(),
            "name": name,
            "displayName": run.settings.get("displayName") or name,
            "description": "",
            "config": run.settings.get("config"),
            "sweepName": run.settings.get("sweep"),
            "project": project,
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _run_resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        model: dict[str, Any] = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": ENTITY}}
        if run is None:
            return {"model": {**model, "bucket": None}}
        history, events = run.streamed(HISTORY), run.streamed(EVENTS)
        bucket = {
            "id": "r",
            "name": variables["name"],
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.settings.get("displayName"),
            "logLineCount": len(run.streamed("output.log")),
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "config": run.settings.get("config") or "{}",
            "tags": run.settings.get("tags") or [],
            "notes": run.settings.get("notes"),
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**model, "bucket": bucket}}

    def stream(self, run_name: str, body: dict[str, Any]) -> None:
        """A request of the file stream."""
        run = self.runs.setdefault(run_name, ServerRun())
        for name, chunk in (body.get("files") or {}).items():
            # The summary is one line, replaced by each request.
            offset = 0 if name == SUMMARY else chunk.get("offset", 0)
            run.lines.setdefault(name, {}).update({offset + i: line for i, line in enumerate(chunk["content"])})
            if name == HISTORY:
                run.sent += [json.loads(line) for line in chunk["content"]]
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    # ---- files

    def _create_run_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        base = f"{self.url}/storage/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def put(self, path: str, content: bytes) -> None:
        """An upload to an address that was given out."""
        run, _, name = unquote(path).removeprefix("/storage/").partition("/")
        self.runs.setdefault(run, ServerRun()).files[name] = content

    # ---- artifacts: one of a digest that the collection has is that artifact, and is not uploaded again

    def _create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables["input"]
        name = given["artifactCollectionName"]
        number = next(
            (i for i, each in enumerate(self.artifacts) if (each.name, each.digest) == (name, given["digest"])), None
        )
        if number is None:
            number = len(self.artifacts)
            self.artifacts.append(
                ServerArtifact(name, given["artifactTypeName"], given["digest"], given.get("runName") or "")
            )
        artifact = self.artifacts[number]
        state = "COMMITTED" if artifact.committed else "PENDING"
        sequence = {"id": f"sequence-{name}", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": str(number), "state": state, "artifactSequence": sequence}}}

    def _create_artifact_manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        number = variables["artifactID"]
        file = {"id": "f", "uploadUrl": f"{self.url}/artifacts/{number}/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": number, "file": file}}}

    def _update_artifact_manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        number = variables["artifactManifestID"]
        file = {"id": "f", "uploadUrl": f"{self.url}/artifacts/{number}/manifest", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": number, "file": file}}}

    def _create_artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for each in variables["input"]["artifactFiles"]:
            number, path = each["artifactID"], hashlib.sha256(each["name"].encode()).hexdigest()
            nodes.append(
                {
                    "storagePath": path,
                    "uploadUrl": f"{self.url}/artifacts/{number}/{path}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": number},
                }
            )
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def put_artifact(self, number: int, name: str, content: bytes) -> None:
        """An upload of one of an artifact's files."""
        if name == "manifest":
            self.artifacts[number].entries = sorted(json.loads(content)["contents"])

    def _commit_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[int(variables["artifactID"])]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": artifact.digest}}}


class Handler(BaseHTTPRequestHandler):
    """Reads requests and hands them to the server under its lock."""

    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _reply(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _fails(self) -> bool:
        """Whether the server's fault answers the request, or leaves it without an answer."""
        fault = self.server.fault
        if fault is None:
            return False
        if fault.isdigit():
            self._reply({"errors": [{"message": f"planted fault {fault}"}]}, int(fault))
            return True
        if fault == "hangs":
            self.server.ended.wait()
        self.close_connection = True
        return True

    def do_GET(self) -> None:
        """Nothing is read that way."""
        self.server.requests.append(f"GET {self.path}")
        if not self._fails():
            self._reply({})

    def do_PUT(self) -> None:
        """An uploaded file."""
        content, path = self._body(), urlsplit(self.path).path
        if self._fails():
            return
        if self.server.refuses_files:
            self._reply({}, 500)
            return
        with self.server.guard:
            self.server.requests.append(f"PUT {path}")
            if path.startswith("/artifacts/"):
                _, _, number, name = path.split("/")
                self.server.put_artifact(int(number), name, content)
            else:
                self.server.put(path, content)
        self._reply({})

    def do_POST(self) -> None:
        """GraphQL, or the file stream of a run."""
        content, path = self._body(), urlsplit(self.path).path
        if self._fails():
            return
        if not path.endswith(("/graphql", "/file_stream")):
            self._reply({})  # the client's reports about itself, which are compressed
            return
        body = json.loads(content)
        with self.server.guard:
            if path.endswith("/file_stream"):
                self.server.requests.append("file_stream")
                self.server.stream(path.split("/")[-2], body)
                self._reply({})
                return
            text = body.get("query", "")
            found = re.match(r"\s*(?:query|mutation)\s+(\w+)", text)
            operation = body.get("operationName") or (found[1] if found else "")
            self.server.requests.append(operation)
            data = self.server.answer(operation, text, body.get("variables") or {})
        self._reply({"data": data} if data else {"data": None, "errors": [{"message": f"unknown: {operation}"}]})
