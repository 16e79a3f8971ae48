"""Headlines from a seeded process: a labelled set to train on, and a stream of several days with a planted surge.

They show that the application works. One author wrote their words and the keywords of the topics, so a
figure on them says nothing about real news.
"""

from __future__ import annotations

import csv
import datetime
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.sentiment_monitor.grammar import COMPANIES, FRAMES, NOUNS, TIMES, VERBS

SEED = 0
SIZES = {"train": 900, "validation": 150, "test": 300}
ORIGIN = "generated"
STREAM_COLUMNS = ("id", "published", "headline", "origin", "topic", "sentiment")
START = datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC)


def combinations(sentiment: str) -> dict[str, list[tuple[str, str]]]:
    """Pairs of noun and verb by split, shuffled by the seed; each pair is in one split."""
    pairs = list(itertools.product(NOUNS, VERBS[sentiment]))
    random.Random(f"{SEED} {sentiment}").shuffle(pairs)
    parts, begin = {}, 0
    for split, size in SIZES.items():
        end = begin + round(len(pairs) * size / sum(SIZES.values()))
        parts[split], begin = pairs[begin:end], end
    return parts


def headline(pair: tuple[str, str], topic: str, rng: random.Random) -> str:
    """A headline on a company of the topic with a noun and a verb."""
    words = {"company": rng.choice(COMPANIES[topic]), "noun": pair[0], "verb": pair[1], "time": rng.choice(TIMES)}
    text = rng.choice(FRAMES).format(**words).strip()
    return text[0].upper() + text[1:]


def labelled_rows(split: str) -> list[tuple[str, str]]:
    """Rows (headline, sentiment) of a split, the sentiments in equal numbers."""
    rng = random.Random(f"{SEED} {split}")
    pairs = {sentiment: combinations(sentiment)[split] for sentiment in VERBS}
    sentiments = [list(VERBS)[number % len(VERBS)] for number in range(SIZES[split])]
    return [(headline(rng.choice(pairs[each]), rng.choice(list(COMPANIES)), rng), each) for each in sentiments]


def write_labelled(folder: Path) -> dict[str, Path]:
    """Write train.csv, validation.csv and test.csv with the columns headline and sentiment."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: folder / f"{split}.csv" for split in SIZES}
    for split, file in files.items():
        _write(file, ("headline", "sentiment"), labelled_rows(split))
    return files


@dataclass(frozen=True)
class Stream:
    """A stream of headlines on every topic.

    num_windows: of window_s seconds each. negative, other: headlines of a topic in a window, on average. size: of the
    negative-binomial distribution of both; one gamma-distributed rate drives them. surge_topic: its negative headlines
    come surge_factor times as often in the last surge_windows windows.
    """

    num_windows: int
    window_s: int = 3600
    negative: float = 4.0
    other: float = 8.0
    size: float = 20.0
    surge_topic: str = "energy"
    surge_factor: float = 3.0
    surge_windows: int = 12
    seed: int = 0


def stream_rows(stream: Stream) -> Iterator[tuple[str, ...]]:
    """Rows of STREAM_COLUMNS in order of time. The pairs of noun and verb are those of all splits."""
    pairs = {sentiment: list(itertools.product(NOUNS, verbs)) for sentiment, verbs in VERBS.items()}
    rng, choices = np.random.default_rng(stream.seed), random.Random(stream.seed)
    for window in range(stream.num_windows):
        surging = window >= stream.num_windows - stream.surge_windows
        drawn: list[tuple[float, str, str]] = []
        for topic in COMPANIES:
            rate = rng.gamma(stream.size, 1 / stream.size)
            factor = stream.surge_factor if surging and topic == stream.surge_topic else 1.0
            numbers = {"negative": rng.poisson(rate * stream.negative * factor)}
            numbers["positive"], numbers["neutral"] = rng.poisson(rate * stream.other / 2, 2)
            for sentiment, number in numbers.items():
                drawn += [(float(second), topic, sentiment) for second in rng.uniform(0, stream.window_s, number)]
        for number, (second, topic, sentiment) in enumerate(sorted(drawn)):
            published = START + datetime.timedelta(seconds=window * stream.window_s + second)
            text = headline(choices.choice(pairs[sentiment]), topic, choices)
            key = f"{stream.seed}-{window}-{number}"
            yield key, published.isoformat(timespec="milliseconds"), text, ORIGIN, topic, sentiment


def write_stream(file: Path, stream: Stream) -> int:
    """Write a stream as CSV. Returns: its number of headlines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return _write(file, STREAM_COLUMNS, stream_rows(stream))


def _write(file: Path, columns: tuple[str, ...], rows: list[tuple[str, str]] | Iterator[tuple[str, ...]]) -> int:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        return sum(1 for row in rows if writer.writerow(row))
