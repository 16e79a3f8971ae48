"""Profilers of chosen steps and ranks: what they record, that they change nothing, and what they refuse."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import pstats
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import pytorch_lightning as pl
import yaml
from conftest import SPIRALS_WORDS
from PIL import Image
from pytorch_lightning.profilers import PassThroughProfiler
from runs import only_run
from several_lines import on_ranks

from trainer.cli import main
from trainer.profile import memory
from trainer.profile.memory import MemoryRecorder
from trainer.profile.memory_picture import COLORS
from trainer.profile.steps import ProfiledSteps
from trainer.report.page import write_report
from trainer.report.profile import read_profile
from trainer.report.read import unique_labels
from trainer.run.metrics_file import read_metrics
from trainer.run.stored_config import read_stored_config

WORDS = [
    *SPIRALS_WORDS, "run.report=true", "trainer.enable_progress_bar=false", "data.num_test=0",
    "trainer.log_every_n_steps=1",
    "max_epochs=2", "limit_train_batches=4",
]  # fmt: skip
# The evaluation after step 4 is between them.
STEPS, WORD = (3, 5), "profiler.steps=[3,5]"
WIDTH, BATCH = 64, 32


class Finished:
    """Runs of one configuration in a directory, by their profiler. graph: what was drawn of memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.timelines: list[Any] = []
        self.printed = ""

    def __call__(self, profiler: str) -> Path:
        return only_run(self.directory / profiler)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    runs = Finished(tmp_path_factory.mktemp("profiles"))
    draw = memory.draw_timeline
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs.directory)
        patch.setattr(
            memory, "draw_timeline", lambda timeline, *a: (runs.timelines.append(timeline), draw(timeline, *a))
        )
        for profiler in ("none", "simple", "torch", "memory", "python"):
            words = [] if profiler in ("none", "simple") else [WORD]
            model = f"model.width={WIDTH}"
            for _ in range(1 if profiler != "memory" else 3):
                shutil.rmtree(profiler, ignore_errors=True)
                assert main([*WORDS, model, f"profiler={profiler}", *words, f"run.root={profiler}"]) == 0
                # torch 2.13 sometimes fails to analyse what it has recorded of memory, and the next attempt is right.
                if runs.timelines:
                    break
    return runs


def annotations(trace: Path) -> list[dict[str, Any]]:
    """The ranges of a trace, in the order of time."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    found = [event for event in events if event.get("cat") == "user_annotation"]
    return sorted(found, key=lambda event: event["ts"])


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "profile").iterdir())


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.mark.parametrize("profiler", ["simple", "torch", "memory", "python"])
def test_a_profiled_run_computes_the_same(finished: Finished, profiler: str) -> None:
    plain, profiled = finished("none"), finished(profiler)

    def losses(run: Path) -> list[tuple[Any, ...]]:
        names = ("step", "train/loss", "val/loss", "optim/grad_norm")
        return [tuple(line.get(name) for name in names) for line in read_metrics(run)]

    assert len(losses(plain)) == 10
    assert losses(profiled) == losses(plain)
    assert (profiled / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert profiled.name == plain.name, "a profiler is no part of the identity"
    assert not (plain / "profile").exists()


def test_a_trace_holds_the_chosen_steps_with_their_states(finished: Finished) -> None:
    run = finished("torch")
    assert files(run) == ["operators-rank-0.csv", "operators-rank-0.txt", "trace-rank-0.json.gz"]
    ranges = annotations(run / "profile" / "trace-rank-0.json.gz")
    steps = [each for each in ranges if each["name"].startswith("step ")]
    assert [each["name"] for each in steps] == ["step 3", "step 4", "step 5"]
    for step in steps:
        end = step["ts"] + step["dur"]
        within = [each["name"] for each in ranges if step["ts"] < each["ts"] < end]
        states = [name for name in within if not name.startswith("Optimizer.")]
        assert states == ["data_wait", "forward", "backward", "forward", "optimizer"]
    between = [each["name"] for each in ranges if steps[1]["ts"] + steps[1]["dur"] < each["ts"] < steps[2]["ts"]]
    assert {"evaluation", "checkpoint"} <= set(between)
    first, last = steps[0]["ts"], steps[-1]["ts"] + steps[-1]["dur"]
    events = json.loads(gzip.decompress((run / "profile" / "trace-rank-0.json.gz").read_bytes()))["traceEvents"]
    operators = [event for event in events if event.get("cat") == "cpu_op"]
    assert len(operators) > 100
    assert all(first <= each["ts"] <= last for each in operators)


def test_operators_are_counted(finished: Finished) -> None:
    table = rows(finished("torch") / "profile" / "operators-rank-0.csv")
    calls = {row["operator"]: int(row["calls"]) for row in table}
    # Two layers in each of three passes, and in those of the evaluation after step 4.
    batches = 1
    assert calls["aten::addmm"] == 2 * (3 + batches)
    assert calls["AddmmBackward0"] == 2 * 3
    assert calls["Optimizer.step#SGD.step"] == 3
    assert not {"step 3", "forward", "evaluation"} & calls.keys()
    own = [float(row["self_cpu_ms"]) for row in table]
    assert own == sorted(own, reverse=True) and own[0] > 0
    text = (finished("torch") / "profile" / "operators-rank-0.txt").read_text()
    assert text.startswith("operators, steps 3 to 5, rank 0\n") and table[0]["operator"] in text


def test_memory_is_that_of_the_tensors(finished: Finished) -> None:
    run = finished("memory")
    assert files(run) == ["allocations-rank-0.csv", "allocations-rank-0.txt", "memory-rank-0.png"]
    with Image.open(run / "profile" / "memory-rank-0.png") as picture:
        assert picture.size == (1320, 600) and len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    (timeline,) = finished.timelines
    categories = [category.name if category else "" for category in COLORS]
    num_parameters = 2 * WIDTH + WIDTH + WIDTH * 2 + 2
    parameters = timeline.mib[:, categories.index("PARAMETER")]
    # Before the first step's update: nothing but the weights themselves.
    assert parameters[timeline.times_ms > 0][0] * 2**20 == pytest.approx(4 * num_parameters)
    assert [name for name, _ in timeline.steps] == ["step 3", "step 4", "step 5"]
    assert (timeline.mib > -1e-9).all()
    activations = timeline.mib[:, categories.index("ACTIVATION")]
    assert activations[-1] < activations.max() / 2, "the backward has freed them"
    # The first layer's output (B, width) in float32, once a step.
    (hidden,) = [
        row
        for row in rows(run / "profile" / "allocations-rank-0.csv")
        if row["state"] == "forward" and row["module"] == "Linear" and float(row["mib"]) > 0.007
    ]
    assert float(hidden["mib"]) == pytest.approx(BATCH * WIDTH * 4 / 2**20, abs=5e-5)
    assert (hidden["times"], hidden["category"]) == ("3", "activation")
    assert timeline.peak_mib >= float(hidden["mib"])


def test_functions_are_those_of_the_chosen_steps(finished: Finished) -> None:
    run = finished("python")
    assert files(run) == ["functions-rank-0.csv", "functions-rank-0.prof", "functions-rank-0.txt"]
    stats: Any = pstats.Stats(str(run / "profile" / "functions-rank-0.prof"))
    calls = {name: value[1] for (file, _, name), value in stats.stats.items() if file.endswith("trainer/module.py")}
    assert calls["training_step"] == calls["manual_backward"] == 3
    table = rows(run / "profile" / "functions-rank-0.csv")
    assert any(row["function"].endswith("(training_step)") and row["calls"] == "3" for row in table)


def test_simple_is_lightnings(finished: Finished) -> None:
    assert files(finished("simple")) == ["fit-hooks-rank-0.txt"]
    assert "run_training_batch" in (finished("simple") / "profile" / "fit-hooks-rank-0.txt").read_text()


def links(page: Path) -> dict[Path, str]:
    """Files that a page links to, and their names there."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<a href="([^"#]+)">([^<]+)</a>', text)
    return {(page.parent / unquote(url)).resolve(): name for url, name in found}


def test_the_page_of_a_run_shows_its_profile(finished: Finished, tmp_path: Path) -> None:
    for profiler in ("torch", "memory", "python"):
        run = finished(profiler)
        assert links(run / "report.html") == {path.resolve(): path.name for path in (run / "profile").iterdir()}
    page = (finished("memory") / "report.html").read_text()
    assert base64.b64encode((finished("memory") / "profile" / "memory-rank-0.png").read_bytes()).decode() in page
    page = (finished("torch") / "report.html").read_text()
    table = rows(finished("torch") / "profile" / "operators-rank-0.csv")
    assert page.index("operators-rank-0.csv <small>first 20 rows") < page.index(f"<td>{table[0]['operator']}</td>")
    assert f"<td>{table[19]['operator']}</td>" in page and "opens in ui.perfetto.dev" in page
    assert 'id="profile"' not in (finished("none") / "report.html").read_text()
    compared = tmp_path / "pages" / "two.html"
    runs = [finished("none"), finished("torch"), finished("memory")]
    write_report(runs, compared)
    section = compared.read_text().partition('<section id="profile">')[2].partition("</section>")[0]
    assert [label for label in unique_labels(runs) if f"<h3>{label}</h3>" in section] == unique_labels(runs)[1:]
    assert len(links(compared)) == 6 and all(path.is_file() for path in links(compared))


def test_the_table_of_a_profile_is_that_of_its_first_rank(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    for rank in (10, 2, 3):
        (tmp_path / "profile" / f"operators-rank-{rank}.csv").write_text(f"operator,calls\nof rank {rank},1\n")
    profile = read_profile(tmp_path)
    assert profile is not None and [table.title for table in profile.tables] == ["operators-rank-2.csv"]
    assert (profile.files[0].name, profile.files[0].url) == ("operators-rank-10.csv", "")


def test_a_profile_that_fails_ends_no_run(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: MemoryRecorder) -> None:
        raise AssertionError("version mismatch")

    monkeypatch.setattr(MemoryRecorder, "stop", fail)
    assert main([*WORDS, "profiler=memory", WORD]) == 0
    run = only_run(in_directory / "outputs")
    assert "nothing was recorded, the log of rank 0 says why" in capsys.readouterr().out
    log = (run / "logs" / "rank-0.log").read_text()
    assert "no profile of the steps 3 to 5, rank 0" in log and "AssertionError: version mismatch" in log


def test_the_end_of_a_run_names_the_files(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "max_epochs=1", "limit_val_batches=0", "profiler=python", "profiler.steps=[1,1]"]
    assert main(words) == 0
    run = only_run(in_directory / "outputs").relative_to(in_directory)
    names = "functions-rank-0.csv, functions-rank-0.prof, functions-rank-0.txt"
    assert f"  profile  {run}/profile: {names}\n" in capsys.readouterr().out


def test_a_run_that_continues_after_the_steps_says_so(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "run.name=run", "limit_val_batches=0"]
    assert main([*words, "max_epochs=1"]) == 0
    capsys.readouterr()
    assert main([*words, "max_epochs=2", "profiler=torch", WORD]) == 0
    run = only_run(in_directory / "outputs")
    assert f"profile  {run.relative_to(in_directory)}/logs: nothing was recorded" in capsys.readouterr().out
    assert "the run continues after step 4, and steps begin at 3" in (run / "logs" / "rank-0.log").read_text()
    assert not (run / "profile").exists()


def parts_of_the_run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Any, Any]:
    """Train. Returns: the names of Lightning's callbacks, its profiler, and what observed the clock at the start."""
    found: list[Any] = []
    fit = pl.Trainer.fit

    class AtStart(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            found.append(pl_module.clock.observer)

    def seen(self: Any, module: Any, **options: Any) -> None:
        found.extend([[type(callback).__name__ for callback in self.callbacks], self.profiler])
        self.callbacks.append(AtStart())
        fit(self, module, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "fit", seen)
        assert main(words) == 0
    return found[0], found[1], found[2]


def test_without_a_profiler_nothing_is_added(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORDS, "max_epochs=1", "limit_val_batches=0"]
    without, profiler, observer = parts_of_the_run(words, monkeypatch)
    assert isinstance(profiler, PassThroughProfiler) and observer is None
    with_one, _, observer = parts_of_the_run([*words, "profiler=python", "profiler.steps=[2,2]"], monkeypatch)
    assert isinstance(observer, ProfiledSteps)
    assert [name for name in with_one if name != "ProfiledSteps"] == without != with_one


ERRORS = {
    "unknown": (["profiler=tensor"], ["profiler=tensor", "did you mean torch?"]),
    "reversed": (["profiler=torch", "profiler.steps=[5,2]"], ["profiler.steps=[5, 2]", "use [2,5]"]),
    "before the first": (["profiler=torch", "profiler.steps=[0,2]"], ["profiler.steps.0=0"]),
    "beyond the run": (["profiler=torch", "profiler.steps=[7,10]"], ["has only 8 steps", "profiler.steps=[5,8]"]),
    "defaults beyond": (["profiler=memory"], ["profiler.steps=[10,11]", "has only 8 steps", "[7,8]"]),
    "no rank": (["profiler=torch", WORD, "profiler.ranks=[0,2]"], ["profiler.ranks=[0, 2]", "no rank 2; possible: 0"]),
    "without effect": (["profiler.steps=[1,2]"], ["profiler.steps=[1,2]", "no such key"]),
    "no GPU": (["profiler=nsys"], ["profiler=nsys", "uses the CPU", "torch, memory or python"]),
    "twice": (["profiler=memory", "trainer.profiler=pytorch"], ["trainer.profiler=pytorch", "same key"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_user_errors_are_printed_in_three_lines(
    name: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = ERRORS[name]
    assert main([*WORDS, *words]) == 2
    printed = capsys.readouterr().err
    assert len(printed.strip().split("\n")) <= 3, printed
    for part in expected:
        assert part in printed, printed


def test_a_profiler_in_a_file_of_the_users_own(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = in_directory / "own" / "experiment"
    folder.mkdir(parents=True)
    words = [*WORDS, f"--config-dir={folder.parent}", "experiment=mine", "max_epochs=1", "limit_train_batches=1"]
    (folder / "mine.yaml").write_text("# @package _global_\ntrainer:\n  profiler: pytorch\n")
    assert main(words) == 2
    assert "override /profiler: torch" in capsys.readouterr().err
    (folder / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /profiler: python\n")
    assert main([*words, "profiler.steps=[1,1]"]) == 0
    assert "functions-rank-0.prof" in files(only_run(in_directory / "outputs"))


@pytest.mark.parametrize(("value", "name"), [(None, "none"), ("simple", "simple"), ("pytorch", "torch")])
def test_a_run_from_before_profilers_were_a_group_is_read(
    finished: Finished, tmp_path: Path, value: str | None, name: str
) -> None:
    run = shutil.copytree(finished("none"), tmp_path / "old")
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["profiler"]
    config["trainer"]["profiler"] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    profiler = read_stored_config(run).config.profiler
    assert profiler.name == name
    assert getattr(profiler, "steps", None) == ([10, 13] if name == "torch" else None)


@pytest.mark.slow
def test_two_ranks_are_profiled_where_chosen(tmp_path: Path) -> None:
    chosen = {"first": "[0]", "second": "[1]", "both": "[0,1]"}
    for name in (*chosen, "none"):
        (tmp_path / name).mkdir()
    lines = [
        (tmp_path / name, [*WORDS, "profiler=torch", WORD, f"profiler.ranks={ranks}"]) for name, ranks in chosen.items()
    ]
    assert on_ranks(2, tmp_path, [*lines, (tmp_path / "none", WORDS)]) == [0, 0, 0, 0]
    runs = {name: only_run(tmp_path / name / "outputs") for name in (*chosen, "none")}
    traces = {name: [file for file in files(runs[name]) if file.startswith("trace")] for name in chosen}
    assert traces == {
        "first": ["trace-rank-0.json.gz"],
        "second": ["trace-rank-1.json.gz"],
        "both": ["trace-rank-0.json.gz", "trace-rank-1.json.gz"],
    }
    for rank in (0, 1):
        ranges = annotations(runs["both"] / "profile" / f"trace-rank-{rank}.json.gz")
        names = [each["name"] for each in ranges]
        assert [name for name in names if name.startswith("step ")] == ["step 3", "step 4", "step 5"]
        steps = [each for each in ranges if each["name"] == "step 5"]
        within = [e["name"] for e in ranges if 0 < e["ts"] - steps[0]["ts"] < steps[0]["dur"]]
        assert within.index("backward") < within.index("communication") < within.index("optimizer")
    weights = {(run / "model.safetensors").read_bytes() for run in runs.values()}
    assert len(weights) == 1
