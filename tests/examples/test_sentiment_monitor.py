"""The monitor with a small trained model: files in, one store, alerts out, also when it is killed; what it refuses."""

import csv
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from watching import wait_until

from examples.sentiment_monitor import delivery
from examples.sentiment_monitor.__main__ import main
from examples.sentiment_monitor.generated import Stream, stream_rows, write_stream
from examples.sentiment_monitor.monitor import Monitor
from examples.sentiment_monitor.settings import DEFAULT, Settings, read_settings
from examples.sentiment_monitor.store import Store
from examples.sentiment_monitor.training import TrainedModel

STREAM = Stream(num_windows=34, surge_factor=5.0, surge_windows=6)


@pytest.fixture(scope="module")
def folder(sentiment_folder: Path) -> Path:
    """The model, settings with a short history, and a stream."""
    write_stream(sentiment_folder / "stream.csv", STREAM)
    return sentiment_folder


@pytest.fixture
def settings(folder: Path) -> Settings:
    return read_settings(folder / "monitor.yaml")


@pytest.fixture
def out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application folder with the model and no store."""
    trained = TrainedModel.read(folder / "outputs" / "sentiment_monitor")
    place = str(folder / trained.run)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.json").write_text(json.dumps({"run": place, "place": place, "data": trained.data}))
    monkeypatch.chdir(folder)
    return out


def score(out: Path, file: Path | str, *words: str) -> int:
    return main(["score", f"input={file}", f"out={out}", "config=monitor.yaml", f"alert_file={out / 'alerts'}", *words])


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


def write_rows(file: Path, rows: list[list[str]], columns: tuple[str, ...] = ("id", "published", "headline")) -> Path:
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([columns, *rows])
    return file


def test_bad_rows_are_skipped_with_a_count(out: Path, tmp_path: Path, capsys) -> None:
    time_s = "2026-01-05T10:00:00"
    good = ["a", time_s, "Polar Oil: profit rose"]
    file = write_rows(
        tmp_path / "bad.csv",
        [
            good, good, ["b", "yesterday", "x"], ["c", "2999-01-01", "x"], ["d", "1970-01-02", "x"],
            ["e", time_s, "  "], ["f", time_s, "x" * 1_000_000], ["g", "nan", "x"], ["h", "1e400", "x"], ["i", time_s],
            [], ["a", time_s, "other"],
        ],
    )  # fmt: skip
    with file.open("ab") as append:
        append.write(b"j,2026-01-05T10:00:00,Gulfstream Gas: Erl\xf6se fell\n")
    assert score(out, file) == 0
    printed = capsys.readouterr().out
    assert "1 headlines stored, 2 already known, 0 late, 9 skipped" in printed
    for reason in (
        "3 time is neither ISO 8601 nor Unix seconds", "1 time in the future", "1 time before 1990", "2 no headline",
        "1 headline longer than 1000 characters", "1 not UTF-8",
    ):  # fmt: skip
        assert reason in printed


def test_lines_of_standard_input(out: Path, monkeypatch, capsys) -> None:
    lines = ["Veda Pharma: profit fell", '{"headline": "Polar Oil: profit rose", "published": 1767225600}']
    lines += ["{broken", "[1]", "", "Veda Pharma: profit fell", '{"headline": 3}', '{"headline": null}', "{" * 20_000]
    for _ in range(2):  # the time of a line without one is the time of its first reading
        reading, writing = os.pipe()
        os.write(writing, "\n".join(lines).encode())
        os.close(writing)
        with os.fdopen(reading) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert score(out, "-") == 0
    printed = capsys.readouterr().out
    assert "3 headlines stored, 1 already known, 0 late, 4 skipped" in printed
    assert "0 headlines stored, 4 already known" in printed


FEED = """<?xml version="1.0"?><rss version="2.0"><channel><title>Wire</title>
<item><guid>1</guid><title>Polar Oil: profit &amp; sales fell</title>
<pubDate>Mon, 05 Jan 2026 10:00:00 GMT</pubDate></item>
<item><guid>2</guid><title>Veda Pharma: profit rose</title></item>{more}</channel></rss>"""


def test_a_feed_is_read_and_a_hostile_one_is_not(out: Path, tmp_path: Path, capsys) -> None:
    feed = tmp_path / "wire.xml"
    feed.write_text(FEED.format(more="<item><guid>3</guid></item>"))
    assert score(out, feed) == 0
    assert "2 headlines stored, 0 already known, 0 late, 1 skipped (1 no headline)" in capsys.readouterr().out
    rows = Store(out / "monitor.sqlite", 3600).read("SELECT text, origin, topic FROM headlines ORDER BY text")
    assert [tuple(row.values()) for row in rows] == [
        ("Polar Oil: profit & sales fell", "Wire", "energy"),
        ("Veda Pharma: profit rose", "Wire", "health"),
    ]
    bomb = '<!DOCTYPE rss [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    feed.write_text(FEED.replace("<rss", bomb + "<rss").format(more="<item><title>&b;</title></item>"))
    refused(["score", f"input={feed}", f"out={out}"], "entities", capsys)
    feed.write_bytes(FEED.encode("utf-16"))
    refused(["score", f"input={feed}", f"out={out}"], "NUL bytes", capsys)
    feed.write_text("<rss><channel><item><title>cut off")
    assert score(out, feed) == 0  # feedparser reads what there is
    feed.write_text("<html>no feed</html>")
    refused(["score", f"input={feed}", f"out={out}"], "no RSS or Atom entries", capsys)


def refused(words: list[str], part: str, capsys) -> None:
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert part in printed
    assert len(printed.splitlines()) <= 3
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"name,when\na,b\n", "no column headline; it has 'name', 'when'"),
        ("headline\nx\n".encode("utf-16"), "is not UTF-8 text"),
        (b'headline\n"open quote\n', "line"),
        (b"headline\n\x00\x00", "is not UTF-8 text"),
    ],
)
def test_contents_that_are_refused(content: bytes, part: str, out: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "file.csv"
    file.write_bytes(content)
    refused(["score", f"input={file}", f"out={out}"], part, capsys)


def test_files_that_are_refused(out: Path, capsys) -> None:
    refused(["score", "input=none.csv", f"out={out}"], "input=none.csv: no such file", capsys)
    refused(["score", "input=a.pdf", f"out={out}"], "possible are files of", capsys)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["scoer"], "scoer: no such verb; possible: train"),
        (["score"], "input: is required"),
        (["serve", "port=x"], "port=x: a whole number"),
        (["serve", "port=70000"], "port=70000: 0 to 65535"),
        (["serve", "prot=1"], "prot=1: no such key; possible: out, host, port"),
        (["serve", "out=nowhere"], "train first"),
        (["serve", "config=nowhere.yaml"], "no such file"),
        (["serve", "webhook=ftp://x"], "webhook=ftp://x: an address with http"),
        (["train", "data=table.pdf"], "possible: generated, phrasebank, sst2"),
        (["train", "model=large"], "possible: auto, minilm, bert_tiny"),
        (["train", "trainer.max_epoch=1"], "max_epoch"),
        (["calibrate", "out=nowhere"], "score some headlines first"),
        (["generate", "windows=3"], "windows=3: 13 to 10000"),
    ],
)
def test_words_that_are_refused(words: list[str], part: str, in_directory: Path, capsys) -> None:
    refused(words, part, capsys)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("size: 20.0", "size: -1", "size=-1: Input should be greater than 0"),
        ("size: 20.0", "sise: 20.0", "sise"),
        ("banks: [", "banks: [[", "cannot be read"),
        ("window_s: 3600", "window_s: 1", "window_s=1: Input should be greater"),
    ],
)
def test_settings_that_are_refused(old: str, new: str, part: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "monitor.yaml"
    file.write_text(DEFAULT.read_text().replace(old, new))
    refused(["serve", f"config={file}"], part, capsys)


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
