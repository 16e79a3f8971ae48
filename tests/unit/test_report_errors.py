"""Runs that cannot be reported are named."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browser.run_directories import damaged_line, write_run

from trainer.cli import main
from trainer.errors import UserError
from trainer.report.read import RunReader


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def without(file: str) -> Callable[[Path], None]:
    return lambda run: (run / file).unlink()


def holding(file: str, content: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / file).write_bytes(content)

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no run.json": (without("run.json"), "run.json"),
    "empty run.json": (holding("run.json", b""), "run.json"),
    "half of run.json": (holding("run.json", b'{"status": "finished", "attem'), "run.json"),
    "run.json of something else": (holding("run.json", b"[1]"), "run.json is damaged"),
    "attempts that are none": (holding("run.json", b'{"status": "running", "attempts": [1]}'), "run.json is damaged"),
    "run.json that is no text": (holding("run.json", b"\xff\xfe\x00"), "run.json is damaged"),
    "no config.yaml": (without("config.yaml"), "config.yaml"),
    "damaged config.yaml": (holding("config.yaml", b"a: [1"), "config.yaml is damaged"),
    "nested config.yaml": (holding("config.yaml", b"[" * 5000), "config.yaml is damaged"),
    "empty config.yaml": (holding("config.yaml", b""), "config.yaml is damaged"),
    "no metrics.jsonl": (without("metrics.jsonl"), "no complete line"),
    "empty metrics.jsonl": (holding("metrics.jsonl", b""), "no complete line"),
    "half a line": (holding("metrics.jsonl", b'{"step": 1, "train/lo'), "no complete line"),
    "damaged line": (damaged_line, "line 4 of metrics.jsonl is damaged"),
    "zeros of a crash": (holding("metrics.jsonl", b"\0" * 512 + b"\n"), "line 1 of metrics.jsonl is damaged"),
    "no step": (holding("metrics.jsonl", b'{"train/loss": 1.0}\n'), "line 1 of metrics.jsonl is damaged"),
    "a word for a number": (holding("metrics.jsonl", b'{"step": 1, "train/loss": "1"}\n'), "line 1 of metrics.jsonl"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_refused(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, expected = DAMAGE[name]
    damage(run)
    assert main(["report", f"run={run}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().split("\n")) <= 3
    assert f"run={run}" in captured.err and expected in captured.err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "needs run=DIR"),
        (["run=nowhere"], "run=nowhere: no such directory"),
        (["runs=outputs"], "did you mean run?"),
        (["--frobnicate"], "--frobnicate: report takes key=value and --serve"),
        (["run=a", "run=a"], "run=a: given twice"),
        (["run=a", "out=x", "out=y"], "out=y: given twice"),
        (["run=a", "out=."], "out=.: is a directory"),
        (["run=a", "port=0"], "port has an effect only with --serve"),
        (["--serve", "run=a"], "run has an effect only without --serve"),
        (["serve=yes"], "serve=yes: true or false"),
        (["--serve", "port=-1"], "port=-1"),
        (["--serve", "port=70000"], "port=70000"),
        (["--serve", "root=nowhere"], "root=nowhere: no such directory"),
    ],
    ids=str,
)
def test_user_errors_are_printed(
    words: list[str], expected: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().split("\n")) <= 3
    assert expected in captured.err


def test_a_page_that_cannot_be_written_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", f"run={run}", f"out={run / 'run.json' / 'page.html'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_failure_at_the_end_of_a_run_is_logged_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.report.page import write_final_report

    write_final_report(write_run(tmp_path / "run"))
    assert (tmp_path / "run" / "report.html").exists()
    assert caplog.text == ""
    write_final_report(tmp_path / "missing")
    assert "no report.html" in caplog.text
    with pytest.raises(UserError):
        RunReader(tmp_path / "missing").read()
