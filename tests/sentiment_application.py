"""The sentiment monitor by its commands."""

import csv
from pathlib import Path

from examples.sentiment_monitor.__main__ import main
from examples.sentiment_monitor.generated import Stream

STREAM = Stream(num_windows=34, surge_factor=5.0, surge_windows=6)


def score(out: Path, file: Path | str, *words: str) -> int:
    """Score a file with the model of an application folder. Returns: exit code."""
    return main(["score", f"input={file}", f"out={out}", "config=monitor.yaml", f"alert_file={out / 'alerts'}", *words])


def write_rows(file: Path, rows: list[list[str]], columns: tuple[str, ...] = ("id", "published", "headline")) -> Path:
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([columns, *rows])
    return file


def refused(words: list[str], part: str, capsys) -> None:
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert part in printed
    assert len(printed.splitlines()) <= 3
    assert "Traceback" not in printed
