"""The service of the sentiment monitor over real sockets, its page in a browser, and the commands of its README."""

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser.webdriver import MISSING, headless_browser
from conftest import REPOSITORY, SHARED_DATA
from sentiment_application import STREAM
from warm import WarmPopen

from examples.sentiment_monitor.generated import stream_rows
from examples.sentiment_monitor.training import TrainedModel

README = REPOSITORY / "examples" / "sentiment_monitor" / "README.md"
EVIL = "<img src=x onerror=boom()> fell"


@contextmanager
def served(folder: Path, out: Path, *words: str) -> Iterator[str]:
    """A service of a model in a process of its own. Yields: its address."""
    trained = TrainedModel.read(folder / "outputs" / "sentiment_monitor")
    place = str(folder / trained.run)
    out.mkdir(exist_ok=True)
    (out / "model.json").write_text(json.dumps({"run": place, "place": place, "data": trained.data}))
    arguments = ["-m", "examples.sentiment_monitor", "serve", "port=0", f"out={out}", "config=monitor.yaml", *words]
    with WarmPopen(arguments, cwd=folder) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        yield line.strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def post(url: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}headlines", body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def get(url: str | urllib.request.Request) -> Any:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return json.load(answer)


class Hook(BaseHTTPRequestHandler):
    """Keeps what it gets."""

    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.got.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        server.received, server.got = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def records() -> list[dict[str, str]]:
    return [{"id": row[0], "published": row[1], "headline": row[2], "origin": row[3]} for row in stream_rows(STREAM)]


def test_headlines_are_posted_and_an_alert_arrives(sentiment_folder: Path, tmp_path: Path, webhook: Any) -> None:
    hook = f"webhook=http://127.0.0.1:{webhook.server_port}/"
    rows = records()
    with served(sentiment_folder, tmp_path / "out", hook) as url:
        alerts, stored = [], 0
        for at in range(0, len(rows), 1000):
            code, answer = post(url, json.dumps({"headlines": rows[at : at + 1000]}).encode())
            assert code == 200
            alerts += answer["alerts"]
            stored += answer["stored"]
        assert stored == len(rows)
        address = f"{url}headlines?topic=banks&start_s=x"
        with pytest.raises(urllib.error.HTTPError) as wrong:
            get(address)
        assert json.load(wrong.value)["error"].startswith("start_s: ")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            get(urllib.request.Request(f"{url}state", headers={"Host": "elsewhere.example"}))
        assert STREAM.surge_topic in {alert["topic"] for alert in alerts}
        assert webhook.got.wait(60)
        assert webhook.received[0] in alerts

        code, answer = post(url, json.dumps({"headlines": [*rows[:3], {"headline": ""}, 5]}).encode())
        assert (answer["stored"], answer["duplicates"], sum(answer["skipped"].values())) == (0, 3, 2)

        state = get(f"{url}state")
        counts = [row["positive"] + row["neutral"] + row["negative"] for row in state["series"]]
        assert sum(counts) == len(rows)
        assert {alert["id"] for alert in state["alerts"]} == {alert["id"] for alert in alerts}
        assert state["has_generated"] and state["model_from_generated"]
        behind = get(f"{url}headlines?topic={alerts[0]['topic']}&start_s={alerts[0]['start_s']}")
        assert {row["text"] for row in behind if row["sentiment"] == "negative"} >= set(alerts[0]["headlines"])
        with urllib.request.urlopen(url, timeout=120) as page:
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]

        assert post(url, b"headline=x", "text/plain")[0] == 415
        assert post(url, b"{")[0] == 422
        assert post(url, b"[1]")[0] == 422
        assert post(url, json.dumps({"headlines": [""] * 1001}).encode())[0] == 422
        assert post(url, b"[" * 100_000)[0] == 422
        assert post(url, b" " * (8 * 2**20 + 1))[0] == 413
        assert get(f"{url}state")["series"] == state["series"]


@pytest.mark.slow
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_the_page_in_a_browser(sentiment_folder: Path, tmp_path: Path) -> None:
    rows = records()
    with served(sentiment_folder, tmp_path / "out") as url, headless_browser(tmp_path) as browser:
        for at in range(0, len(rows), 1000):
            post(url, json.dumps({"headlines": rows[at : at + 1000]}).encode())
        browser.open("about:blank")
        browser.errors()
        browser.requests()
        browser.open(url)
        browser.wait_for("return document.querySelectorAll('#alerts article').length > 0")
        browser.run("document.querySelector('#alerts button').click()")
        browser.wait_for("return document.querySelectorAll('tbody tr').length > 0")
        assert "generated headlines" in browser.run("return document.querySelector('#note').textContent")
        # What arrives while the page is open is drawn, as text.
        last = rows[-1]["published"]
        post(url, json.dumps({"headlines": [{"headline": EVIL, "published": last, "origin": EVIL}]}).encode())
        browser.wait_for("return document.querySelector('#summary').textContent.startsWith"
                         f"('{len(rows) + 1:,} headlines')")  # fmt: skip
        browser.run("[...document.querySelectorAll('.topic:last-child rect.hit')].at(-1)"
                    ".dispatchEvent(new Event('click'))")  # fmt: skip
        browser.wait_for(f"return document.querySelector('tbody td:nth-child(2)').textContent === {json.dumps(EVIL)}")
        assert browser.run("return document.querySelectorAll('img').length") == 0
        assert browser.errors() == []
        assert [request for request in browser.requests() if not request.startswith(url)] == []


LINES = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.split("\n")
    if line.strip()
]
FEED = "<rss><channel><item><title>Polar Oil: profit fell</title></item></channel></rss>"
QUICK = " export=false trainer.max_steps=2 trainer.limit_val_batches=1 trainer.limit_test_batches=1"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    """In order, in a directory of their own; training on real data is cut to two steps, on generated data small."""
    (tmp_path / "news.xml").write_text(FEED)
    labels = {"rose": "positive", "stayed flat": "neutral", "fell": "negative"}
    rows = [f"Profit {verb} {number} times,{label}\n" for number in range(20) for verb, label in labels.items()]
    (tmp_path / "labelled.csv").write_text("headline,sentiment\n" + "".join(rows))
    assert LINES[0].startswith("pip install")
    for line in LINES[1:]:
        command = line.replace("python ", f"{shlex.quote(sys.executable)} ")
        if "path/to/financial_phrasebank" in line and not SHARED_DATA.exists():
            continue
        command = command.replace("path/to/financial_phrasebank", str(SHARED_DATA / "financial_phrasebank"))
        command = command.replace("path/to/labelled.csv", "labelled.csv") + (QUICK if " data=" in line else "")
        if line.endswith(" train"):
            command = command.replace(" train", " train model=bert_tiny")
        if " serve" in line:
            command = f"exec {command} port=0"
            with subprocess.Popen(command, shell=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert get(f"{process.stdout.readline().strip()}state")["series"]
                process.terminate()
                assert process.wait(60) == 0
            continue
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    assert (tmp_path / "outputs" / "alerts.jsonl").read_text().count("energy@") >= 1
