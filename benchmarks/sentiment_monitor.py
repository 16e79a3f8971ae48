"""The sentiment monitor: false alarms computed and measured, how soon a surge is found, kills, accuracy on PhraseBank.

    python -m examples.sentiment_monitor train model=bert_tiny
    python -m trainer experiment=minilm_financial_phrasebank data.path=DIR logger=none
    python -m benchmarks.sentiment_monitor outputs/sentiment_monitor outputs/bert/minilm-financial_phrasebank-HASH

Minutes on one core. Writes a dated file under benchmarks/results/.
"""

from __future__ import annotations

import datetime
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import trainer
from benchmarks.result_file import surroundings, write_result
from examples.sentiment_monitor.generated import Stream, stream_rows, write_stream
from examples.sentiment_monitor.monitor import Model, Monitor, Outcome
from examples.sentiment_monitor.settings import DEFAULT, Settings, read_settings
from examples.sentiment_monitor.store import Store
from examples.sentiment_monitor.training import TrainedModel

NUM_STREAMS = 1_000_000
CHUNK = 100_000
NUM_SURGES = 100
FOUND_WITHIN = 300
NUM_KILLS = 50
SCORE = [sys.executable, "-m", "examples.sentiment_monitor", "score"]
# A rule with frequent alarms, so that whole streams can be measured within minutes.
QUIET_HISTORY, QUIET_RATE = 24, 0.005
QUIET_STREAM = Stream(num_windows=524, other=1.0, surge_windows=0)
NUM_QUIET_STREAMS = 8


class Remembered:
    """A model that computes each text once: streams of many seeds share texts."""

    def __init__(self, model: Model) -> None:
        self.model, self.results = model, dict[str, Mapping[str, Any]]()

    def __call__(self, texts: list[str]) -> list[Mapping[str, Any]]:
        """The results of the model."""
        new = list(dict.fromkeys(text for text in texts if text not in self.results))
        if new:
            self.results.update(zip(new, self.model(new), strict=True))
        return [self.results[text] for text in texts]


def records(stream: Stream, topics: Sequence[str] = ()) -> list[dict[str, str]]:
    """The headlines of a stream, on some topics only where such are given."""
    rows = [row for row in stream_rows(stream) if not topics or row[4] in topics]
    return [{"id": key, "published": published, "headline": text} for key, published, text, *_ in rows]


def rule_lines(settings: Settings) -> list[str]:
    """False alarms of the rule in independent quiet streams, of the assumed size and of others."""
    rule = settings.rule
    lines = [
        f"{NUM_STREAMS:,} quiet streams a row: {rule.history_windows} windows of history and one more, drawn as Poisson"
        f" counts with gamma-distributed rates; the rule of monitor.yaml (size {rule.size:g}, false_alarm_rate"
        f" {rule.false_alarm_rate:g}). The interval has 99 % of what a stream of the computed rate gives.",
        "",
        "| mean a window | size of the stream | computed rate | 99 % interval | measured rate | within |",
        "|---|---|---|---|---|---|",
    ]
    for mean in (1.0, 4.0, 10.0):
        computed = rule.computed_rate(mean)
        interval = stats.binom(NUM_STREAMS, computed).ppf([0.005, 0.995])
        for size in (rule.size, rule.size / 2, 1e6):
            alarms = _alarms_of_rule(settings, mean, size)
            within = "yes" if interval[0] <= alarms <= interval[1] else "no"
            low, high = interval / NUM_STREAMS
            shown = f"{size:g}" if size == rule.size else f"{size:g} (not the assumed one)"
            lines.append(
                f"| {mean:g} | {shown} | {computed:.3e} | {low:.3e} to {high:.3e} |"
                f" {alarms / NUM_STREAMS:.3e} | {within} |"
            )
    return lines


def _alarms_of_rule(settings: Settings, mean: float, size: float) -> int:
    rule, rng, alarms = settings.rule, np.random.default_rng(0), 0
    for _ in range(NUM_STREAMS // CHUNK):
        # The sum of the past windows of one gamma shape each is one draw of their summed shape.
        past = rng.poisson(rng.gamma(rule.history_windows * size, mean / size, CHUNK))
        last = rng.poisson(rng.gamma(size, mean / size, CHUNK))
        thresholds = {each: rule.threshold(each) for each in set(past.tolist())}
        alarms += int((last >= np.array([thresholds[each] for each in past.tolist()])).sum())
    return alarms


def quiet_lines(model: Model, folder: Path) -> list[str]:
    """False alarms of the whole monitor on quiet streams: generated headlines, the model, the store."""
    settings = replace(
        read_settings(DEFAULT), history_windows=QUIET_HISTORY, false_alarm_rate=QUIET_RATE, cool_down_s=0, min_count=1
    )
    alarms, negative, tested = 0, 0, 0
    for seed in range(NUM_QUIET_STREAMS):
        monitor = Monitor(Store(folder / f"quiet-{seed}.sqlite", settings.window_s), model, settings)
        rows = records(replace(QUIET_STREAM, seed=seed))
        alarms += sum(len(monitor.add(rows[at : at + 1000], "generated").alerts) for at in range(0, len(rows), 1000))
        series = monitor.store.series()
        negative += sum(row["negative"] for row in series)
        tested += len(settings.topics) * (QUIET_STREAM.num_windows - QUIET_HISTORY)
    mean = negative / (NUM_QUIET_STREAMS * QUIET_STREAM.num_windows * len(settings.topics))
    computed = settings.rule.computed_rate(mean)
    low, high = stats.binom(tested, computed).ppf([0.005, 0.995])
    return [
        f"The whole monitor (model, store, transactions) on {NUM_QUIET_STREAMS} quiet generated streams: history of"
        f" {QUIET_HISTORY} windows, false_alarm_rate {QUIET_RATE:g}, no cool-down, {mean:.2f} negative headlines a"
        f" window. {tested:,} windows were tested. Computed rate {computed:.3e}: {low:.0f} to {high:.0f} alarms in 99 %"
        f" of such measurements. Measured: {alarms} ({alarms / tested:.3e}),"
        f" {'within' if low <= alarms <= high else 'NOT within'} the interval.",
    ]


def surge_lines(model: Model, folder: Path) -> list[str]:
    """Headlines of the topic from the begin of a surge to its alert, with the settings that ship."""
    settings = read_settings(DEFAULT)
    stream = Stream(num_windows=settings.history_windows + 24, surge_windows=24)
    numbers: list[float] = []
    for seed in range(NUM_SURGES):
        monitor = Monitor(Store(folder / f"surge-{seed}.sqlite", settings.window_s), model, settings)
        rows = records(replace(stream, seed=seed), [stream.surge_topic])
        begin = settings.history_windows * settings.window_s + _time_s(rows[0]) // settings.window_s * settings.window_s
        outcome = Outcome()
        for at in range(0, len(rows), 1000):
            outcome.add(monitor.add(rows[at : at + 1000], "generated"))
        raised = [alert.raised_s for alert in outcome.alerts if alert.raised_s >= begin]
        within = [begin <= _time_s(row) <= raised[0] for row in rows] if raised else []
        numbers.append(sum(within) if raised else float("inf"))
    found = sum(number <= FOUND_WITHIN for number in numbers)
    half, most = np.quantile(numbers, [0.5, 0.95], method="higher")
    return [
        f"{NUM_SURGES} seeds, {stream.negative:g} negative and {stream.other:g} other headlines of the topic a window;"
        f" from a moment on negative ones come {stream.surge_factor:g} times as often. Settings of monitor.yaml. An"
        f" alert came within {FOUND_WITHIN} headlines of the topic in {found} of {NUM_SURGES} seeds; after {half:g}"
        f" headlines in half of them and {most:g} in 95.",
    ]


def _time_s(row: Mapping[str, str]) -> float:
    return datetime.datetime.fromisoformat(row["published"]).timestamp()


def kill_lines(trained_in: Path, folder: Path) -> list[str]:
    """`score` as a process, killed with SIGKILL and started again, against one that was not disturbed."""
    trained = TrainedModel.read(trained_in)
    stream = folder / "stream.csv"
    number = write_stream(stream, Stream(num_windows=420))
    outs = {name: folder / name for name in ("undisturbed", "killed")}
    for out in outs.values():
        out.mkdir()
        (out / "model.json").write_text((trained_in / "model.json").read_text())
    assert Path(trained.place).exists(), f"{trained.place}: run this from the directory of the training"
    command = {
        name: [*SCORE, f"input={stream}", f"out={out}", f"alert_file={out / 'alerts'}"] for name, out in outs.items()
    }
    subprocess.run(command["undisturbed"], check=True, stdout=subprocess.DEVNULL)
    rng, stored = random.Random(0), list[int]()
    kills = 0
    while kills < NUM_KILLS:
        process = subprocess.Popen(command["killed"], stdout=subprocess.DEVNULL)
        before = _num_stored(outs["killed"])
        # One in five dies while it starts, the others after the next batch and a random time.
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 2))
        else:
            while _num_stored(outs["killed"]) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break
        kills += 1
        stored.append(_num_stored(outs["killed"]))
    subprocess.run(command["killed"], check=True, stdout=subprocess.DEVNULL)
    expected, found = _contents(outs["undisturbed"]), _contents(outs["killed"])
    lost, more = (sum(len(a[t] - b[t]) for t in expected) for a, b in ((expected, found), (found, expected)))
    lines = [(out / "alerts").read_text().splitlines() for out in outs.values()]
    moments = len(set(stored))
    return [
        f"{number:,} headlines from a file, {kills} kills with SIGKILL; the process was started again each time"
        f" and read the file from its begin ({moments} different states at the kills). Against a process that was not"
        f" disturbed: {lost} rows lost and {more} too many in the headlines, counts and alerts;"
        f" {len(found['alerts'])} alerts, {len(lines[1])} lines in the file of alerts"
        f" ({'the same' if sorted(lines[0]) == sorted(lines[1]) else 'NOT the same'}).",
    ]


def _num_stored(out: Path) -> int:
    try:
        with sqlite3.connect(out / "monitor.sqlite") as db:
            return db.execute("SELECT count(*) FROM headlines").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def _contents(out: Path) -> dict[str, set[tuple[Any, ...]]]:
    with sqlite3.connect(out / "monitor.sqlite") as db:
        return {name: set(db.execute(f"SELECT * FROM {name}")) for name in ("headlines", "windows", "alerts")}


def main() -> int:
    """Write the result."""
    trained_in, phrasebank = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    trained = TrainedModel.read(trained_in)
    model = Remembered(trained.load())
    metrics = trainer.evaluate(phrasebank)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            "False alarms of the rule": rule_lines(read_settings(DEFAULT)),
            "False alarms of the monitor (generated headlines)": quiet_lines(model, folder),
            "A planted surge (generated headlines)": surge_lines(model, folder),
            "Kills": kill_lines(trained_in, folder),
            "Accuracy": [
                "Financial PhraseBank, experiment=minilm_financial_phrasebank: test/accuracy"
                f" {metrics['test/accuracy']:.4f} on its held-out sentences.",
                f"The model of the other parts was trained on: {trained.data}. They say nothing about real news.",
            ],
        }
    lines = [
        f"# Sentiment monitor, {datetime.date.today()}",
        "",
        "    python -m examples.sentiment_monitor train model=bert_tiny",
        "    python -m trainer experiment=minilm_financial_phrasebank data.path=DIR logger=none",
        f"    python -m benchmarks.sentiment_monitor outputs/sentiment_monitor outputs/bert/{phrasebank.name}",
        "",
        *surroundings("one thread", "torch", "onnxruntime", "scipy", "numpy"),
    ]
    for title, part in parts.items():
        lines += ["", f"## {title}", "", *part]
    write_result("sentiment-monitor", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
