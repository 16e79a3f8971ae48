"""The monitor with a small trained model: files in, one store, alerts out, also when it is killed; what it refuses."""

import itertools
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sentiment_application import STREAM, refused, score
from watching import wait_until

from examples.sentiment_monitor import delivery
from examples.sentiment_monitor.__main__ import main
from examples.sentiment_monitor.generated import stream_rows
from examples.sentiment_monitor.monitor import Monitor
from examples.sentiment_monitor.settings import DEFAULT, Settings
from examples.sentiment_monitor.store import Store
from examples.sentiment_monitor.training import TrainedModel


def contents(out: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, and the lines of the file of alerts."""
    with sqlite3.connect(out / "monitor.sqlite") as db:
        tables = {
            table: db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("headlines", "windows", "alerts")
        }
        tables["deliveries"] = db.execute("SELECT topic, start_s, target, state FROM deliveries").fetchall()
    lines = (out / "alerts").read_text().splitlines()
    return {**tables, "file": [(json.loads(line)["id"],) for line in lines]}


@pytest.fixture(scope="module")
def scored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not disturbed."""
    out = tmp_path_factory.mktemp("scored")
    trained = TrainedModel.read(folder / "outputs" / "sentiment_monitor")
    place = str(folder / trained.run)
    (out / "model.json").write_text(json.dumps({"run": place, "place": place, "data": trained.data}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert score(out, "stream.csv") == 0
    return out


def test_a_stream_is_stored_counted_and_its_surge_is_found(scored: Path, settings: Settings) -> None:
    rows = list(stream_rows(STREAM))
    stored = contents(scored)
    assert len(stored["headlines"]) == len(rows)
    with sqlite3.connect(scored / "monitor.sqlite") as db:
        counted = db.execute(
            "SELECT topic, start_s, sum(sentiment = 'positive'), sum(sentiment = 'neutral'),"
            " sum(sentiment = 'negative') FROM headlines GROUP BY topic, start_s ORDER BY topic, start_s"
        ).fetchall()
        found = dict(db.execute("SELECT text, sentiment FROM headlines").fetchall())
        topics = dict(db.execute("SELECT text, topic FROM headlines").fetchall())
    assert counted == stored["windows"]
    # Columns of a row: id, published, headline, origin, topic, sentiment.
    assert sum(found[row[2]] == row[5] for row in rows) >= 0.95 * len(rows)
    assert all(topics[row[2]] == row[4] for row in rows)

    alerts = Store(scored / "monitor.sqlite", settings.window_s).alerts()
    surge = [alert for alert in alerts if alert.topic == STREAM.surge_topic]
    assert surge
    alert = surge[0]
    past = [row[4] for row in counted if row[0] == alert.topic and row[1] < alert.start_s][-24:]
    assert alert.expected == pytest.approx(sum(past) / 24)
    assert alert.count == alert.threshold == len(alert.headlines) == settings.rule.threshold(sum(past))
    assert all(found[text] == "negative" for text in alert.headlines)
    assert len(stored["file"]) == len(alerts)
    # The cool-down: alerts of a topic are at least that far apart.
    times = [alert.raised_s for alert in surge]
    assert all(after - before >= settings.cool_down_s for before, after in itertools.pairwise(times))


def test_a_replay_changes_nothing(scored: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(folder)
    before = contents(scored)
    assert score(scored, "stream.csv") == 0
    assert contents(scored) == before
    assert f"0 headlines stored, {len(before['headlines']):,} already known" in capsys.readouterr().out


def forked(words: list[str]) -> int:
    """A process that runs a command line. Returns: its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = main(words)
        finally:
            os._exit(code)
    return pid


def num_stored(out: Path) -> int:
    try:
        with sqlite3.connect(out / "monitor.sqlite") as db:
            return db.execute("SELECT count(*) FROM headlines").fetchone()[0]
    except sqlite3.OperationalError:  # no table yet
        return 0


@pytest.mark.slow
def test_kills_lose_and_double_nothing(scored: Path, out: Path) -> None:
    words = ["score", "input=stream.csv", f"out={out}", "config=monitor.yaml", f"alert_file={out / 'alerts'}"]
    rng, kills = random.Random(0), 0
    for attempt in range(5):
        before = num_stored(out)
        pid = forked(words)
        ended = threading.Thread(target=os.waitid, args=(os.P_PID, pid, os.WEXITED | os.WNOWAIT))
        ended.start()
        wait_until(lambda b=before, e=ended: num_stored(out) > b or not e.is_alive(), 120)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        ended.join()
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert num_stored(out) % 200 in (0, num_stored(scored) % 200), f"part of a batch, attempt {attempt}"
    assert kills >= 3
    assert main(words) == 0
    assert contents(out) == contents(scored)


class Hook(BaseHTTPRequestHandler):
    """A webhook that answers with the next of its codes, or with 204."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.headers["Idempotency-Key"], json.loads(body)))
        self.send_response(self.server.codes.pop(0) if self.server.codes else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.received, server.codes = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_webhook_that_fails_is_tried_again(scored: Path, settings: Settings, webhook, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.001)
    targets = delivery.targets_of(f"http://127.0.0.1:{webhook.server_port}/hook", None)
    store = store_with_one_alert(scored, settings, tmp_path / "a.sqlite", list(targets))
    webhook.codes[:] = [500, 302]
    delivery.deliver_all(store, targets)
    (alert,) = store.alerts()
    message = delivery.message_of(alert)
    assert webhook.received == 3 * [(json.dumps(message["id"]), message)]
    assert f"{alert.count} negative headlines" in message["explanation"]
    assert store.undelivered() == []
    delivery.deliver_all(store, targets)
    assert len(webhook.received) == 3

    store = store_with_one_alert(scored, settings, tmp_path / "b.sqlite", list(targets))
    webhook.codes[:] = 100 * [500]
    delivery.deliver_all(store, targets)
    assert len(webhook.received) == 3 + delivery.MAX_ATTEMPTS
    (row,) = store.undelivered()
    assert (row["state"], row["attempts"]) == ("given up", delivery.MAX_ATTEMPTS)
    assert "500" in row["error"]


def test_a_webhook_that_does_not_answer_is_left_after_a_time(monkeypatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as silent:  # accepts, and is never served
        monkeypatch.setattr(delivery, "TIMEOUT_S", 0.05)
        with pytest.raises(OSError, match="timed out"):
            delivery.post(f"http://127.0.0.1:{silent.server_port}/", {"id": "a"})


def store_with_one_alert(scored: Path, settings: Settings, file: Path, targets: list[str]) -> Store:
    """A store into which the headlines of the surge come, as the model has labelled them."""
    with sqlite3.connect(scored / "monitor.sqlite") as db:
        rows = db.execute("SELECT key, text, published_s, sentiment FROM headlines WHERE topic = 'energy'").fetchall()
    labels = {text: sentiment for _, text, _, sentiment in rows}
    store = Store(file, settings.window_s)
    forever = replace(settings, cool_down_s=10**9)
    monitor = Monitor(store, lambda texts: [{"label": labels[t], "probability": 1.0} for t in texts], forever, targets)
    records = [{"id": key, "headline": text, "published": time_s} for key, text, time_s, _ in rows]
    outcome = monitor.add(records, "test")
    assert len(outcome.alerts) == 1
    return store


def test_late_headlines_and_gaps(settings: Settings, tmp_path: Path) -> None:
    """What is late is stored and counted, and a pause of the monitor is no quiet time."""
    store = Store(tmp_path / "s.sqlite", settings.window_s)
    monitor = Monitor(store, lambda texts: [{"label": "negative", "probability": 1.0} for _ in texts], settings)

    def add(window: int, number: int) -> list[object]:
        rows = [
            {"id": f"{window}-{n}-{number}", "headline": "Oil fell", "published": 1.7e9 + 3600 * window + n}
            for n in range(number)
        ]
        outcome = monitor.add(rows, "test")
        assert outcome.stored == number
        return [outcome.late, len(outcome.alerts)]

    for window in range(12):
        assert add(window, 4) == [0, 0]
    for window in range(1000, 1012):  # the monitor was off: 24 windows of four each before the next one
        assert add(window, 4) == [0, 0]
    assert add(1012, 4) == [0, 0]
    assert add(3, 40) == [40, 0]
    assert add(1012, 40) == [0, 1]


def test_a_store_of_another_window_length_is_refused(scored: Path, tmp_path: Path, capsys, monkeypatch, folder) -> None:
    monkeypatch.chdir(folder)
    file = tmp_path / "day.yaml"
    file.write_text(DEFAULT.read_text().replace("window_s: 3600", "window_s: 86400"))
    refused(["score", "input=stream.csv", f"out={scored}", f"config={file}"], "has windows of 3600 s", capsys)


def test_calibrate_prints_what_the_store_shows(scored: Path, folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    assert main(["calibrate", f"out={scored}", "config=monitor.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "banks: " in printed and "95 % interval" in printed and "other: no negative headline" in printed
