"""The harness of all benchmarks: its arithmetic against numpy, what it refuses and reports, its words and its files."""

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from conftest import REPOSITORY, SPIRALS_WORDS, CommandLine
from turn_sides import count_steps

from benchmarks.result_file import write_comparison_result
from trainer.bench.compare import compare, write_comparison
from trainer.bench.comparison import Comparison, Question, markdown, table_of
from trainer.bench.process import run_process
from trainer.bench.rounds import AGAIN, Sample, difference
from trainer.bench.speedup import Interval
from trainer.bench.turns import taking_turns
from trainer.cli import main
from trainer.data.texts.buffer import EncodedTexts, TokenBuffer, TokenSet
from trainer.errors import UserError
from trainer.run.metrics_file import read_metrics
from trainer.verbs.bench.loading import Samples, checksums, tensors_of
from trainer.verbs.bench.padding import Way
from trainer.verbs.bench.runs import UNREDUCED
from trainer.verbs.bench.table import BENCHMARKS

QUESTION = Question("example", "a against b", "step", "wall time", "their losses", 1e-3)
FACTS = {"command": "bench example", "versions": {"torch": "0"}}


def samples_of(**times: list[float]) -> dict[str, list[Sample]]:
    return {name.replace("_", " "): [Sample(each, {"loss": 1.0}) for each in own] for name, own in times.items()}


def test_ratios_and_quartiles_are_those_of_numpy() -> None:
    draw = np.random.default_rng(0)
    common = draw.normal(1.0, 0.1, 9)
    a, b, again = (scale * common + draw.normal(0, 0.01, 9) for scale in (1.0, 3.0, 1.0))
    comparison = Comparison.of(QUESTION, samples_of(a=[*a], b=[*b], a_again=[*again]), FACTS)
    first, second = comparison.sides
    assert (first.name, second.name) == ("a", "b")
    assert second.relative_time.value == pytest.approx(np.median(b) / np.median(a))
    assert comparison.noise.value == pytest.approx(np.median(again) / np.median(a))
    assert second.quartiles_s == pytest.approx(np.quantile(b, [0.25, 0.75]))
    # An independent bootstrap of whole rounds, by other random numbers.
    rounds = np.random.default_rng(7).choice(9, (4000, 9))
    ratios = np.array([np.median(b[own]) / np.median(a[own]) for own in rounds])
    assert [second.relative_time.low, second.relative_time.high] == pytest.approx(
        np.percentile(ratios, [2.5, 97.5]), rel=0.02
    )
    assert first.relative_time == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "times",
    [
        {"a": [1.0], "a_again": [1.0]},
        {"a": [1.0], "b": [], "a_again": [1.0]},
        {"a": [1.0, 1.0], "b": [1.0], "a_again": [1.0, 1.0]},
        {"a": [1.0], "b": [1.0]},
        {},
    ],
    ids=str,
)
def test_a_ratio_without_its_other_side_is_refused(times: dict[str, list[float]]) -> None:
    with pytest.raises(UserError, match="needs both sides"):
        Comparison.of(QUESTION, samples_of(**times), FACTS)


def test_one_side_is_refused_before_it_is_measured() -> None:
    with pytest.raises(UserError, match="only a is named"):
        compare(QUESTION, {"a": lambda: pytest.fail("measured")}, 2, "bench example")


def test_other_computed_numbers_are_reported() -> None:
    def compared(*numbers: Mapping[str, float]) -> Comparison:
        samples = {"a": [Sample(1.0, {"loss": 2.0})], "b": [Sample(1.0, each) for each in numbers]}
        return Comparison.of(QUESTION, {**samples, "a" + AGAIN: samples["a"]}, FACTS)

    same, other, nothing = compared({"loss": 2.0002}), compared({"loss": 2.2}), compared({"accuracy": 2.0})
    assert same.sides[1].difference == pytest.approx(1e-4) and same.notes == []
    assert other.sides[1].difference == pytest.approx(0.1)
    assert "b: a computed number differs from that of a by 1.0e-01, more than 1e-03" in other.notes[0]
    assert nothing.sides[1].difference is None and "no computed number could be compared" in nothing.notes[0]
    assert table_of(nothing)[1][1][-1] == "not compared"
    assert compared({"loss": math.nan}).sides[1].difference == math.inf
    assert difference({"x": 4.0, "y": 1.0}, [Sample(1, {"x": 3.0}), Sample(1, {"x": 5.0, "z": 9.0})]) == 0.25


def test_the_files_hold_every_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def side(times_s: Iterator[float]) -> Callable[[], Sample]:
        return lambda: Sample(next(times_s), {"loss": 1.0}, {"forward": 0.5}, {"size, GiB": 2.0})

    sides = {"a": side(itertools.count(1.0)), "b": side(itertools.count(11.0))}
    comparison = compare(QUESTION, sides, 3, "bench example", ["a busy machine"])
    write_comparison(comparison, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    times = {name: [sample["time_s"] for sample in own] for name, own in stored["samples"].items()}
    assert times == {"a": [1.0, 4.0, 5.0], "b": [11.0, 12.0, 13.0], "a again": [2.0, 3.0, 6.0]}
    assert stored["sides"][1]["relative_time"]["value"] == 12 / 4
    assert {"torch", "numpy"} <= stored["facts"]["versions"].keys()
    assert {"load average before", "load average after", "hardware", "date"} <= stored["facts"].keys()
    page = (tmp_path / "out" / "result.md").read_text()
    assert page == markdown(comparison) and "a busy machine" in page and "3.000" in page and "size, GiB" in page
    assert (tmp_path / "out" / "result.png").stat().st_size > 5_000
    assert "round 3/3  b" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be written"):
        write_comparison(comparison, tmp_path / "out" / "result.md")


def test_a_process_is_measured_by_itself() -> None:
    def spent_by(count: int) -> float:
        code = f"import sys; sum(range({count})); sys.stderr.write('said'); print('done'); sys.exit(3)"
        done = run_process([sys.executable, "-I", "-S", "-c", code], {"UNUSED": "1"})
        assert (done.code, done.stdout, done.stderr) == (3, "done\n", "said") and done.peak_gib > 0
        return done.cpu_s

    assert spent_by(20_000_000) > spent_by(0)
    signalled = run_process([sys.executable, "-I", "-c", "import os; os.kill(os.getpid(), 9)"], {})
    assert signalled.code == -9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["startup", "task=cnn"], "takes no words of a training run"),
        (["startup", "starts=0"], "a number from 1 on"),
        (["startup", "fast"], "not of the form key=value"),
        (["overhead", "trainer.precision=bf16-mixed", "trainer.accelerator=cpu"], "knows only 32-true"),
        (["overhead", "batch.micro_size=8"], "takes whole batches"),
        (["data", "trainer.devices=2"], "measures with trainer.devices=1"),
        (["bucketing", "trainer.accelerator=cuda"], "measures with trainer.accelerator=cpu"),
        (["checkpoint", "every=60"], "a smaller number"),
        (["checkpoint", "trainer.devices=2"], "measures with trainer.devices=1"),
        (["ddp", "strategy=fsdp2"], "measures with strategy=ddp"),
        (["precision", "trainer.precision=32-true"], "a ratio needs two sides"),
        (["precision", "trainer.precision=32-true,17-mixed"], "17-mixed"),
        (["strategies", "strategy=ddp"], "a ratio needs two sides"),
        (["strategies", "trainer.devices=1"], "a number from 2 on"),
        (["ddp", "rounds=6"], "a number from 7 on"),
        (["compile", "steps=11"], "a number from 12 on"),
        (["compile", "task=cnn", "model.stem=auto"], "no such key"),
    ],
)
def test_wrong_words_are_refused_in_three_lines(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], in_directory: Path
) -> None:
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed and len(printed.strip().splitlines()) <= 3
    assert not list(in_directory.iterdir())


def test_every_benchmark_has_a_page_and_a_row_in_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    overview = capsys.readouterr().out
    documented = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name, each in BENCHMARKS.items():
        assert main(["bench", name, "--help"]) == 0
        page = capsys.readouterr().out
        assert page.startswith(f"bench {name}: {each.compares}\n")
        assert ("rounds=N" in page) == (each.rounds is not None)
        assert each.compares in overview
        assert f"| `bench {each.examples[0]}" in documented


PLAIN = [word for word in SPIRALS_WORDS if not word.startswith("logger=")]
RUNS = [*PLAIN, "model.dropout=0", "steps=12"]
STUDIES = {
    "startup": ["starts=1"],
    "overhead": [*PLAIN, "steps=2"],
    "data": [*PLAIN, "steps=4"],
    "bucketing": ["task=bert", "steps=2"],
    "checkpoint": [*RUNS, "every=3"],
    "ddp": RUNS,
    "strategies": [*RUNS, "strategy=ddp,fsdp2"],
    "precision": RUNS,
    "compile": RUNS,
}


def with_cost(name: str) -> ParameterSet:
    return pytest.param(name, marks=pytest.mark.slow if name in ("overhead", "data") else pytest.mark.long)


@pytest.mark.parametrize("name", [with_cost(name) for name in STUDIES])
def test_a_benchmark_measures_its_sides_and_they_compute_the_same(
    name: str, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.verbs.bench.words.FEWEST_ROUNDS", 2)
    assert main(["bench", name, *STUDIES[name], "rounds=2", "out=out"]) == 0
    result = json.loads((in_directory / "out" / "result.json").read_text())
    times = {side: [sample["time_s"] for sample in own] for side, own in result["samples"].items()}
    first, *others = (side["name"] for side in result["sides"])
    assert others and times.keys() == {first, *others, first + AGAIN}
    assert all(len(own) == 2 and min(own) > 0 for own in times.values())
    for side in result["sides"]:
        assert side["relative_time"]["value"] == pytest.approx(np.median(times[side["name"]]) / np.median(times[first]))
    assert result["noise"]["value"] == pytest.approx(np.median(times[first + AGAIN]) / np.median(times[first]))
    printed = capsys.readouterr().out
    assert "differs from that of" not in printed and "could be compared" not in printed
    if result["question"]["tolerance"] is not None:
        assert all(sample["computed"] for own in result["samples"].values() for sample in own)
        assert all(side["difference"] <= result["question"]["tolerance"] for side in result["sides"])
    assert (in_directory / "out" / "result.png").exists() and (in_directory / "out" / "result.md").exists()


def test_every_benchmark_is_tried() -> None:
    # These have tests of their own, in test_bench.py, test_export.py and test_load.py.
    assert STUDIES.keys() | {"scaling", "inference", "serve"} == BENCHMARKS.keys()


def test_sides_take_turns_in_processes_of_their_own() -> None:
    works = {name: partial(count_steps, slope=slope) for name, slope in {"a": 1.0, "b": 2.0}.items()}
    with taking_turns(works, steps=2, warm_up_turns=1) as sides:
        samples = [sides[name]() for name in ("a", "b", "a")]
    computed = [dict(sample.computed) for sample in samples]
    assert computed == [
        {"loss of step 3": 3.0, "loss of step 4": 4.0},
        {"loss of step 3": 6.0, "loss of step 4": 8.0},
        {"loss of step 5": 5.0, "loss of step 6": 6.0},
    ]
    assert all(sample.time_s > 0 for sample in samples)
    failing = partial(count_steps, slope=1.0, fails=True)
    with taking_turns({"a": failing}, 2, 1) as sides, pytest.raises(UserError, match="of the user"):
        sides["a"]()
    with pytest.raises(RuntimeError, match="TypeError"), taking_turns({"a": count_steps}, 2, 1):  # pyright: ignore[reportArgumentType]
        pass


@pytest.mark.slow
def test_without_the_all_reduce_ranks_train_apart(in_directory: Path, command_line: CommandLine) -> None:
    """So that `bench ddp` leaves out what it says that it leaves out."""
    words = [*SPIRALS_WORDS, "trainer.devices=2", "strategy=ddp", "trainer.max_steps=20", "model.dropout=0"]
    losses = []
    for more in ([], [UNREDUCED]):
        done = command_line(*words, *more, f"run.name=run-{len(losses)}", cwd=in_directory)
        assert done.returncode == 0, done.stderr
        lines = read_metrics(in_directory / "outputs" / "spirals" / f"run-{len(losses)}")
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert losses[0][0] != losses[1][0]


def test_the_sides_of_data_are_compared_by_every_value() -> None:
    first = [{"ids": torch.tensor([[1, 2], [3, 4]])}, {"ids": torch.tensor([[5, 6]])}]
    assert checksums(first) == checksums([{"ids": batch["ids"].clone()} for batch in first])
    exchanged = [{"ids": torch.tensor([[2, 1], [3, 4]])}, first[1]]
    padded = [{"ids": torch.tensor([[1, 2, 0], [3, 4, 0]])}, first[1]]
    for other in (exchanged, padded, first[::-1], first[:1]):
        assert checksums(first) != checksums(other)


def test_torch_collates_what_the_set_gathers() -> None:
    draw = np.random.default_rng(0)
    ids = [draw.integers(1, 99, length).tolist() for length in (3, 7, 5, 2, 6)]
    buffer = TokenBuffer.from_chunks([EncodedTexts(ids, [len(each) for each in ids], 0)])
    tokens = TokenSet(buffer, np.arange(5), pad_id=0, max_length=16, pad_to_multiple_of=4)
    indices = np.array([4, 0, 3])
    expected = tensors_of(tokens.gather(indices, 3, 0))
    for ready in ([], [indices.tolist()]):
        samples = Samples(tokens, "texts", ready)
        found = samples.collate([samples[index] for index in indices.tolist()])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_batches_that_stand_for_an_epoch_have_its_padding() -> None:
    lengths = np.random.default_rng(1).integers(2, 60, 640)
    buffer = TokenBuffer.from_chunks([EncodedTexts([[1] * each for each in lengths], lengths.tolist(), 0)])
    tokens = TokenSet(buffer, np.zeros(640), pad_id=0, max_length=64)
    way = Way(tokens, np.split(np.arange(640), 40))
    positions = sum(lengths[batch].max() * 16 for batch in way.batches)
    assert way.padding_share() == pytest.approx(1 - lengths.sum() / positions)
    assert Way(replace(tokens, width=64), way.batches).padding_share() == pytest.approx(1 - lengths.sum() / (64 * 640))
    typical = [lengths[batch].max() for batch in way.typical(10)]
    assert typical == sorted(typical) and len(set(map(id, way.typical(40)))) == 40
    assert np.mean(typical) == pytest.approx(positions / 640, rel=0.02)


@pytest.mark.parametrize(("goals", "code"), [({"b": 2.5}, 0), ({"b": 3.5}, 1), ({"c": 0.6}, 0), ({"c": 0.4}, 1)])
def test_a_goal_that_is_missed_is_said(
    goals: dict[str, float], code: int, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.result_file.RESULTS", in_directory / "results")
    samples = samples_of(a=[1.0] * 2, b=[3.0] * 2, c=[0.5] * 2, a_again=[1.0] * 2)
    assert write_comparison_result("example", Comparison.of(QUESTION, samples, FACTS), goals) == code
    (written,) = (in_directory / "results").iterdir()
    assert ("missed" if code else "met") in written.read_text()
    assert json.loads((in_directory / "outputs" / "bench" / "example" / "result.json").read_text())["samples"]["c"]
