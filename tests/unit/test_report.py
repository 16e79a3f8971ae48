"""The page of a run as a file: what is read, kept, placed, escaped."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser.run_directories import ATTEMPT, append_line, damaged_line, metrics_line, write_run
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
    verdict = {"bound": "data", "share": 0.62, "target": "data", "advice": "performance.prefetch_batches=4"}
    run = write_run(tmp_path / "run", time={"verdict": verdict})
    assert main(["report", f"run={run}"]) == 0
    page = (run / "report.html").read_text()
    assert "data 62%" in page and "try performance.prefetch_batches=4<" in page
    write_run(tmp_path / "other", time={"verdict": {**verdict, "target": "host"}})
    assert main(["report", f"run={tmp_path / 'other'}"]) == 0
    assert "try performance.prefetch_batches=4 against host" in (tmp_path / "other" / "report.html").read_text()


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
