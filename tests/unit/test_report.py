"""The page of a run as a file: what is read, kept, placed, escaped; what is refused."""

import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from browser.run_directories import ATTEMPT, append_line, metrics_line, write_run
from conftest import REPOSITORY, SPIRALS_WORDS
from PIL import Image

from trainer.cli import main
from trainer.errors import UserError
from trainer.report.charts import build_charts, placed
from trainer.report.decimation import average, decimate
from trainer.report.facts import ABSENT, config_rows, duration
from trainer.report.metrics_reader import MetricsReader
from trainer.report.pictures import read_gallery
from trainer.report.read import RunReader, unique_labels
from trainer.report.runs import Runs
from trainer.verbs.report.live import Server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


# ---- decimation


def extremes_by_bucket(values: list[float], max_points: int) -> set[float]:
    """The same definition in plain Python, bucket by bucket."""
    size = math.ceil(len(values) / (max_points // 2))
    buckets = [values[start : start + size] for start in range(0, len(values), size)]
    return {extreme for bucket in buckets for extreme in (min(bucket), max(bucket))} | {values[0], values[-1]}


@pytest.mark.parametrize("num_points", [2001, 9_999, 10_000, 123_457])
def test_decimation_keeps_the_extremes_of_every_bucket(num_points: int) -> None:
    values = np.random.default_rng(num_points).standard_normal(num_points).cumsum()
    kept = decimate(values, 2000)
    assert set(values[kept]) == extremes_by_bucket(values.tolist(), 2000)
    assert len(kept) <= 2002
    assert (np.diff(kept) > 0).all()


def test_decimation_keeps_a_single_spike_and_short_series() -> None:
    values = np.zeros(50_000)
    values[31_415] = 1.0
    assert 31_415 in decimate(values, 2000)
    assert decimate(values[:2000], 2000).tolist() == list(range(2000))
    assert decimate(np.zeros(0)).tolist() == []


def test_decimation_keeps_gaps() -> None:
    values = np.arange(10_000.0)
    values[5_000:5_100] = math.nan
    values[7_000] = math.inf
    kept = decimate(values, 2000)
    assert np.isnan(values[kept]).sum() == 10  # one in each bucket of 10
    assert 7_000 in kept
    assert np.nanmax(values[kept][np.isfinite(values[kept])]) == 9_999


def test_averaged_shares_still_add_up_to_1() -> None:
    rows = np.random.default_rng(0).random((12_345, 4))
    rows /= rows.sum(axis=1, keepdims=True)
    averaged = average(rows, 2000)
    assert len(averaged) <= 2000
    np.testing.assert_allclose(averaged.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(averaged[0], np.mean(rows[:7], axis=0))


# ---- reading


def test_a_reading_continues_where_the_last_one_ended(run: Path) -> None:
    reader = MetricsReader(run)
    reader.refresh()
    before = reader.offset
    append_line(run, step=101, **{"train/loss": 0.5})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 102, "train/lo')
    reader.refresh()
    assert reader.offset > before
    assert (reader.last_step, reader.has_torn_line) == (101, True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('ss": 0.25}\n')
    reader.refresh()
    assert (reader.last_step, reader.has_torn_line) == (102, False)
    assert reader.latest()["train/loss"] == 0.25

    again = MetricsReader(run)
    again.refresh()
    for name, series in again.series().items():
        np.testing.assert_array_equal(series.values, reader.series()[name].values)


@pytest.mark.parametrize(("num_kept", "num_new"), [(10, 1), (110, 1000)], ids=["shorter", "longer"])
def test_a_file_replaced_by_a_resumed_run_is_read_from_its_start(num_kept: int, num_new: int, run: Path) -> None:
    reader = MetricsReader(run)
    reader.refresh()
    kept = (run / "metrics.jsonl").read_text().split("\n")[:num_kept]
    (run / "staged").write_text("".join(line + "\n" for line in kept))
    (run / "staged").replace(run / "metrics.jsonl")
    for step in range(1000, 1000 + num_new):
        append_line(run, step=step, **{"train/loss": 9.0})
    reader.refresh()
    series = reader.series()["train/loss"]
    assert len(series.steps) == len([line for line in kept if "train/loss" in line]) + num_new
    assert series.steps[-1] == 999 + num_new


def test_a_damaged_line_is_named_at_every_reading(run: Path) -> None:
    damaged_line(run)
    reader = MetricsReader(run)
    for _ in range(3):
        with pytest.raises(UserError, match=r"line 4 of metrics\.jsonl is damaged"):
            reader.refresh()


def test_labels_are_as_short_as_they_can_be_and_unique() -> None:
    assert unique_labels([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert unique_labels([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


# ---- what is shown where


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/loss", ("Losses and metrics", "loss", "train")),
        ("test/top5_accuracy", ("Losses and metrics", "top5_accuracy", "test")),
        ("optim/lr", ("Optimization", "optim/lr", "")),
        ("optim/lr_generator", ("Optimization", "optim/lr", "generator")),
        ("optim/grad_norm_discriminator", ("Optimization", "optim/grad_norm", "discriminator")),
        ("perf/step_time_s", ("Speed", "perf/step_time_s", "")),
        ("perf/step_time_p95_s", ("Speed", "perf/step_time_s", "p95")),
        ("perf/step_time_max_s", ("Speed", "perf/step_time_s", "max")),
        ("perf/step_time_s_rank_3", ("Speed", "perf/step_time_s by rank", "rank 3")),
        ("sys/memory_gib/rank12", ("Memory and system", "sys/memory_gib by rank", "rank 12")),
        ("perf/peak_memory_gib", ("Memory and system", "perf/peak_memory_gib", "")),
        ("anything", ("Other", "anything", "")),
    ],
)
def test_where_a_metric_is_shown(name: str, expected: tuple[str, str, str]) -> None:
    assert placed(name) == expected


def test_every_metric_is_in_exactly_one_chart(run: Path) -> None:
    for rank in (10, 2):
        append_line(run, step=100, **{f"perf/step_time_s_rank_{rank}": 0.1})
    data = RunReader(run).read()
    charts = build_charts([data])
    assert sum(len(chart.lines) for chart in charts) == len(data.series)
    titles = [chart.title for chart in charts]
    assert titles[:2] == ["loss", "accuracy"]
    assert next(chart.parts for chart in charts if chart.title.endswith("by rank")) == ("rank 2", "rank 10")
    (shares,) = [chart for chart in charts if chart.stacked]
    np.testing.assert_allclose(sum(line.values for line in shares.lines), 1.0)


def test_the_configurations_differ_where_they_do(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", config={"optimizer": {"name": "adam", "lr": 0.1}, "extra": None})
    rows = config_rows([RunReader(first).read(), RunReader(second).read()])
    assert [(row.key, row.values) for row in rows if row.differs] == [
        ("optimizer.lr", ("0.001", "0.1")),
        ("extra", (ABSENT, "null")),
    ]
    assert not any(row.differs for row in rows[2:])


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.6, 3599, 3600, 90_061)] == [
        "0 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "25 h 01 min",
    ]  # fmt: skip


def test_pictures_of_steps_are_one_album_and_what_is_too_large_is_named(run: Path) -> None:
    (run / "samples").mkdir()
    for step in range(100):
        Image.new("L", (4, 4), step).save(run / "samples" / f"step-{step:08d}.png")
    Image.new("L", (4, 4)).save(run / "confusion_val.png")
    Image.new("L", (4, 4)).save(run / "curves.png")
    (run / "large.png").write_bytes(b"0" * 9 * 2**20)
    (run.parent / "outside.csv").write_text("secret\n1\n")
    (run / "examples.csv").symlink_to(run.parent / "outside.csv")
    (run / "predictions.csv").write_text("text,label\n" + "hello,greeting\n" * 30)
    (run / "examples.jsonl").write_text("{not json\n")
    gallery = read_gallery(run)
    assert [(album.title, len(album.frames)) for album in gallery.albums] == [("samples", 24), ("confusion val", 1)]
    assert [gallery.albums[0].frames[i].caption for i in (0, -1)] == ["step 0", "step 99"]
    assert gallery.left_out == ["large", "examples.jsonl"]
    (table,) = gallery.tables
    assert (len(table.rows), table.has_more, table.rows[0]) == (20, True, ("hello", "greeting"))


# ---- the file


def test_a_page_needs_nothing_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", f"run={run}"]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!data:|#)', markup) == []
    assert page.count("BokehJS") >= 1
    assert "default-src 'none'" in page
    for text in ("all 100 steps done", "61,706", "0123abcd", "optimizer.lr", "python -m trainer task=cnn"):
        assert text in markup


def test_runs_are_compared_in_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [write_run(tmp_path / name / "run", scale=scale) for name, scale in (("a", 1.0), ("b", 2.0))]
    assert main(["report", *(f"run={run}" for run in runs)]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert "a/run" in page and "b/run" in page
    assert main(["report", *(f"run={run}" for run in runs), "out=new/page.html"]) == 0
    assert (tmp_path / "new" / "page.html").exists()


def test_a_running_run_and_a_torn_last_line_are_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", status="running", attempts=[{**ATTEMPT, "end": None, "cause": None}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_line(101))[:40])
    assert main(["report", f"run={run}"]) == 0
    page = (run / "report.html").read_text()
    assert "the last line of metrics.jsonl is incomplete" in page
    assert "no end recorded" in page


def test_what_bounds_a_run_is_a_key_figure(tmp_path: Path) -> None:
    verdict = {"bound": "data", "share": 0.62, "advice": "performance.prefetch_batches=4"}
    run = write_run(tmp_path / "run", time={"verdict": verdict})
    assert main(["report", f"run={run}"]) == 0
    page = (run / "report.html").read_text()
    assert "data 62%" in page and "try performance.prefetch_batches=4" in page


@pytest.mark.parametrize("value", [None, "a word", [1], {}], ids=str)
def test_a_record_without_facts_is_reported(value: object, tmp_path: Path) -> None:
    """As of a run that was killed before it had built its model."""
    parts = ("hardware", "versions", "git", "command", "start", "end", "cause")
    attempts = [{**ATTEMPT, **dict.fromkeys(parts, value)}, {}]
    config = dict.fromkeys(("task", "model", "data", "monitor"), value)
    for name, given in (("a", attempts), ("b", [])):
        write_run(tmp_path / name, config=config, attempts=given, data=value, model=value, time=value)
    assert main(["report", f"run={tmp_path / 'a'}"]) == 0
    runs = [f"run={tmp_path / name}" for name in "ab"]
    assert main(["report", *runs, f"out={tmp_path / 'page.html'}"]) == 0
    assert [row["task"] for row in Runs(tmp_path).rows()] == [ABSENT, ABSENT]


def test_values_that_are_not_finite_are_counted(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "train/loss": NaN}\n{"step": 102, "train/loss": Infinity}\n')
    assert main(["report", f"run={run}"]) == 0
    assert "train/loss is not finite at 2 of 102 points" in (run / "report.html").read_text()


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=boom()></script><script>boom()</script>"
    run = write_run(
        tmp_path / "<img src=x>",
        config={"note": evil, "model": {"name": evil}},
        status=evil,
        attempts=[{**ATTEMPT, "cause": evil, "host": evil}],
        data={"source": evil},
        model={evil: evil},
    )
    append_line(run, step=101, **{f"train/{evil}": 1.0, f"perf/share_{evil}": 0.5})
    assert main(["report", f"run={run}"]) == 0
    page = (run / "report.html").read_text()
    assert "<img src=x" not in page
    assert "<script>boom" not in page


def test_the_report_imports_nothing_heavy(run: Path, tmp_path: Path) -> None:
    code = f"""
import json, sys
from trainer.cli import main
assert main(["report", "run={run}"]) == 0
import trainer.verbs.report.live
heavy = ("torch", "pytorch_lightning", "transformers", "matplotlib", "wandb", "pandas")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.strip().split("\n")[-1]) == []


@pytest.mark.slow
def test_a_real_run_is_reported(in_directory: Path) -> None:
    assert main([*SPIRALS_WORDS, "run.name=run", "trainer.max_epochs=2", "trainer.enable_progress_bar=false"]) == 0
    run = in_directory / "outputs" / "spirals" / "run"
    assert main(["report", f"run={run}"]) == 0
    assert "val/accuracy" in (run / "report.html").read_text()


# ---- what is refused


def without(file: str) -> Callable[[Path], None]:
    return lambda run: (run / file).unlink()


def holding(file: str, content: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / file).write_bytes(content)

    return damage


def damaged_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().split("\n")
    lines[3] = lines[3][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no run.json": (without("run.json"), "run.json"),
    "empty run.json": (holding("run.json", b""), "run.json"),
    "half of run.json": (holding("run.json", b'{"status": "finished", "attem'), "run.json"),
    "run.json of something else": (holding("run.json", b"[1]"), "run.json is damaged"),
    "attempts that are none": (holding("run.json", b'{"status": "running", "attempts": [1]}'), "run.json is damaged"),
    "run.json that is no text": (holding("run.json", b"\xff\xfe\x00"), "run.json is damaged"),
    "no config.yaml": (without("config.yaml"), "config.yaml"),
    "damaged config.yaml": (holding("config.yaml", b"a: [1"), "config.yaml is damaged"),
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


# ---- the live server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "outputs"
    write_run(root / "cnn" / "first")
    write_run(root / "cnn" / "damaged", config={"note": "x"})
    (root / "cnn" / "damaged" / "run.json").write_text("{")
    write_run(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    with Server(root, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(server: Server, target: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """The request line exactly as given, which urllib would clean up. Returns: status, text, ETag."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, target, headers=headers)
    answer = connection.getresponse()
    text, tag = answer.read().decode(), answer.getheader("ETag") or ""
    connection.close()
    return answer.status, text, tag


def test_only_this_machine_is_served(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert request(server, "/api/runs", Host=host)[0] == 200
    for host in ("attacker.example", f"attacker.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.attacker.example"):
        status, text, _ = request(server, "/api/runs", Host=host)
        assert (status, text) == (403, "wrong host")
    assert request(server, "/api/runs", method="POST")[0] == 501


@pytest.mark.parametrize(
    "target",
    [
        "/../outside/run.json",
        "/cnn/first/run.json",
        "/report?run=../outside",
        "/report?run=link",
        "/report?run=/etc",
        "/report?run=cnn/first/../first",
        "/report?run=cnn/first&run=%2e%2e/outside",
        "/api/points?run=..%2Foutside",
        "/report?run=",
        "/report",
        "/assets/report.js",
    ],
)
def test_nothing_but_the_runs_below_the_root_is_served(target: str, server: Server) -> None:
    status, text, _ = request(server, target)
    assert status == 404
    assert "attempts" not in text


def test_the_rows_of_the_table(server: Server) -> None:
    status, text, tag = request(server, "/api/runs")
    damaged, first = json.loads(text)
    assert (status, first["run"], first["step"], first["status"]) == (200, "cnn/first", 100, "finished")
    assert (damaged["run"], damaged["status"]) == ("cnn/damaged", "damaged")
    assert request(server, "/api/runs", **{"If-None-Match": tag})[:2] == (304, "")
    assert request(server, "/report?run=cnn/damaged")[0] == 422


def test_points_are_sent_as_soon_as_they_are_written(server: Server) -> None:
    target = "/api/points?run=cnn/first"
    _, text, tag = request(server, target)
    assert request(server, target, **{"If-None-Match": tag})[:2] == (304, "")
    append_line(server.runs.root / "cnn" / "first", **metrics_line(101))
    status, later, _ = request(server, target, **{"If-None-Match": tag})
    before, after = json.loads(text), json.loads(later)
    assert (status, before["last_step"], after["last_step"]) == (200, 100, 101)
    assert before["signature"] == after["signature"]
    assert after["charts"][0][0]["y"][-1] == pytest.approx(metrics_line(101)["train/loss"], rel=1e-6)
    append_line(server.runs.root / "cnn" / "first", step=101, **{"train/loss": math.nan, "test/new": 1.0})
    assert json.loads(request(server, target)[1])["signature"] != before["signature"]


def test_a_port_that_is_taken_is_refused(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--serve", f"root={server.runs.root}", f"port={server.server_port}"]) == 2
    assert f"port={server.server_port}: " in capsys.readouterr().err
