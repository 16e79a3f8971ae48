"""Scaling studies: the arithmetic against independent computations, the rounds, the words, and one real study."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SPIRALS_WORDS

from trainer.bench.rounds import AGAIN, Sample, largest_difference, run_rounds
from trainer.bench.speedup import StepModel, karp_flatt, ratio, ring_all_reduce_s, speed_ups
from trainer.cli import main
from trainer.verbs.bench.samples import training_sample


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("devices", [2, 7, 64])
def test_karp_flatt_finds_the_serial_fraction_of_amdahls_law(serial: float, devices: int) -> None:
    amdahl = 1 / (serial + (1 - serial) / devices)
    assert karp_flatt(amdahl, devices) == pytest.approx(serial, abs=1e-12)


def test_strong_and_weak_rows() -> None:
    times = {1: [8.0, 8.0, 8.0], 2: [5.0, 5.0, 5.0], 4: [4.0, 4.0, 4.0]}
    strong, weak = speed_ups(times), speed_ups(times, weak=True)
    assert [row.speed_up.value for row in strong] == pytest.approx([1.0, 1.6, 2.0])
    assert [row.efficiency.value for row in strong] == pytest.approx([1.0, 0.8, 0.5])
    assert [row.speed_up.value for row in weak] == pytest.approx([1.0, 3.2, 8.0])
    assert [row.efficiency.value for row in weak] == pytest.approx([1.0, 1.6, 2.0])
    assert strong[0].serial_fraction is None and strong[2].serial_fraction is not None
    # 1/2 = e + (1 - e) / 4
    assert strong[2].serial_fraction.value == pytest.approx(1 / 3)


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for number in range(200):
        common = random.normal(1.0, 0.2, 15)  # what a round has in common
        slow, fast = 2.0 * common + random.normal(0, 0.02, 15), common + random.normal(0, 0.01, 15)
        interval = ratio(slow.tolist(), fast.tolist(), seed=number)
        covered += interval.low <= 2.0 <= interval.high
        assert interval.low <= interval.value <= interval.high
    assert 170 <= covered <= 200


def test_rounds_interleave_and_swap_the_order() -> None:
    calls: list[str] = []

    def side(name: str, time_s: float) -> object:
        def measure() -> Sample:
            calls.append(name)
            return Sample(time_s, {"loss": 1.0 if name == "a" else 1.5})

        return measure

    reported: list[tuple[int, str]] = []
    samples = run_rounds(
        {"a": side("a", 1.0), "b": side("b", 2.0)},  # pyright: ignore[reportArgumentType]
        2,
        lambda number, name, sample: reported.append((number, name)),
    )
    assert calls == ["a", "b", "a", "a", "b", "a"]
    assert reported == [(1, "a"), (1, "b"), (1, "a" + AGAIN), (2, "a" + AGAIN), (2, "b"), (2, "a")]
    assert {name: len(own) for name, own in samples.items()} == {"a": 2, "b": 2, "a" + AGAIN: 2}
    assert largest_difference(samples, ["a", "b"]) == pytest.approx(0.5)
    assert largest_difference(samples, ["a", "a" + AGAIN]) == 0.0


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_a_ring_moves_what_the_formula_says(devices: int) -> None:
    chunks = [[1 / devices] * devices for _ in range(devices)]  # of a message of 1 byte
    sent = [0.0] * devices
    for _ in ("reduce-scatter", "all-gather"):
        for step in range(devices - 1):
            for rank in range(devices):
                sent[rank] += chunks[rank][(rank - step) % devices]
    assert ring_all_reduce_s(1.0, devices, 1.0) == pytest.approx(max(sent))


def test_the_model_of_a_step_is_a_line_and_a_ring() -> None:
    model = StepModel.fitted((32, 0.010), (16, 0.006), message_bytes=1e6, bytes_per_s=1e9)
    assert (model.fixed_s, model.sample_s) == pytest.approx((0.002, 0.00025))
    assert model.efficiency(32, 1) == 1.0
    assert model.efficiency(32, 2) == pytest.approx(0.010 / (0.006 + 0.001) / 2)
    assert model.efficiency(32, 2, weak=True) == pytest.approx(0.010 / (0.010 + 0.001))
    # A step that is all overhead gains nothing.
    assert StepModel.fitted((32, 0.01), (16, 0.01), 0.0, 1.0).efficiency(32, 4) == pytest.approx(0.25)


def test_a_training_sample_leaves_out_the_warm_up_and_separates_waiting_from_communication() -> None:
    own = {"perf/step_time_s_rank_0": 0.006, "perf/step_time_s_rank_1": 0.008}
    shares = {"perf/share_forward": 0.5, "perf/share_communication": 0.3, "perf/share_evaluation": 0.2}
    lines = [
        {"step": number, "train/loss": 1 / number, "perf/step_time_s": 9.0 if number < 3 else 0.01, **shares, **own}
        for number in range(1, 7)
    ]
    sample = training_sample([*lines, {"step": 6, "val/loss": 1.0}])
    assert sample.time_s == 0.01
    assert set(sample.computed) == {f"train/loss step {number}" for number in range(3, 7)}
    assert sample.details == pytest.approx({"forward": 0.00625, "communication": 0.00275, "imbalance": 0.001})
    assert sum(sample.details.values()) == pytest.approx(sample.time_s)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "bench scaling task=cnn"),
        (["scalling"], "did you mean scaling?"),
        (["scaling", "task=cnn"], "trainer.devices=: bench scaling takes numbers of devices"),
        (["scaling", "task=cnn", "trainer.devices=2"], "both have to be measured"),
        (["scaling", "task=cnn", "trainer.devices=2,4"], "both have to be measured"),
        (["scaling", "task=cnn", "trainer.devices=1,two"], "takes numbers of devices"),
        (["scaling", "training", "infer", "trainer.devices=1,2"], "did you mean inference?"),
        (["scaling", "trainer.devices=1,2", "rounds=3"], "a number from 7 on"),
        (["scaling", "trainer.devices=1,2", "steps=none"], "a number from 12 on"),
        (["scaling", "trainer.devices=1,2", "mode=fast"], "possible: strong, weak, both"),
        (["scaling", "trainer.devices=1,2", "trainer.accelerator=cpu,cuda"], "on one device each"),
        (["scaling", "trainer.accelerator=cpu,cuda"], "no GPU is visible here"),
        (["scaling", "trainer.devices=1,3", "batch.global_size=64", "optimizer.lrr=1"], "no such key"),
    ],
)
def test_wrong_words_are_refused_in_three_lines(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], in_directory: Path
) -> None:
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed and len(printed.strip().splitlines()) <= 3
    assert not list(in_directory.iterdir())


SPIRALS = [word for word in SPIRALS_WORDS if not word.startswith(("logger=", "trainer.accelerator="))]
(OF_THE_README,) = re.findall(
    r"^python -m trainer (bench .*?)  +#", (REPOSITORY / "README.md").read_text(), re.MULTILINE
)
STUDIES = {
    "training": [*OF_THE_README.split(), "mode=strong", "steps=12"],
    "inference": ["bench", "scaling", "inference", *SPIRALS, "trainer.devices=1,2"],
    "data": ["bench", "scaling", "data", *SPIRALS, "trainer.devices=1,2"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.long] if k == "training" else []) for k in STUDIES]
)
def test_a_study_measures_both_sides_and_writes_its_files(
    kind: str,
    in_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("trainer.verbs.bench.words.FEWEST_ROUNDS", 2)
    assert main([*STUDIES[kind], "rounds=2", "out=study"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "study" / "result.json").read_text())
    assert {name: len(own) for name, own in result["samples"].items() if name in ("1", "2", "1" + AGAIN)} == {
        "1": 2, "2": 2, "1" + AGAIN: 2,
    }  # fmt: skip
    one, two = ([sample["time_s"] for sample in result["samples"][name]] for name in ("1", "2"))
    assert result["strong"][1]["speed_up"]["value"] == pytest.approx(np.median(one) / np.median(two))
    computed = [sample["computed"] for name in ("1", "2") for sample in result["samples"][name]]
    assert all(each.keys() == computed[0].keys() and each for each in computed)
    # Dropout draws other masks on other ranks.
    assert result["difference"] < (0.05 if kind == "training" else 1e-6)
    page = (tmp_path / "study" / "index.html").read_text()
    assert "Scaling of" in page and not re.search(r"(src|href)=\"http", page)
    assert (tmp_path / "study" / "scaling.png").stat().st_size > 10_000
    assert "speed-up" in printed and "round 2/2" in printed
