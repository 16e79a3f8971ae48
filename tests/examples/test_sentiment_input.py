"""What the sentiment monitor reads: rows that are skipped with a count, and files and words that it refuses."""

import os
import sys
from pathlib import Path

import pytest
from sentiment_application import refused, score, write_rows

from examples.sentiment_monitor.settings import DEFAULT
from examples.sentiment_monitor.store import Store


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
