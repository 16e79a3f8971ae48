"""Questions with their intents and answers: from files, or generated; checked, and split into four sets.

train       what the models learn from
validation  chooses the best epoch
held_out    chooses the thresholds
test        is only measured
"""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.customer_service.tables import ANSWER, INTENT, QUESTION, SUFFIXES, read_table
from tasks.bert.intents import intent_rows
from trainer import UserError

SPLITS = ("train", "validation", "held_out", "test")
SHARES = {"validation": 0.05, "held_out": 0.10, "test": 0.15}
MAX_QUESTION_CHARS = 2000
MIN_INTENTS = 2
SEED = 0

GENERATED = "generated"
# These intents of the generated set are asked only as questions that nobody has prepared an answer for.
UNPREPARED = ("opening_hours", "check_stock", "invoice_request")
GENERATED_SIZES = {"train": 1700, "val": 680, "test": 680}


@dataclass(frozen=True)
class Row:
    """A question of the past. answer: its best answer, "" where the file has none."""

    question: str
    intent: str
    answer: str = ""


@dataclass(frozen=True)
class Questions:
    """All sets.

    splits: rows by the name of the set. out_of_scope: questions without an answer, where the source has such.
    skipped: rows that were left out, by reason. source: the file or folder, or GENERATED.
    """

    splits: dict[str, list[Row]]
    source: str
    out_of_scope: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def read_questions(data: str) -> Questions:
    """The questions of a file, of a folder with train.* and test.*, or the generated ones for GENERATED.

    Raises: UserError: it cannot be read, or has fewer than two intents.
    """
    if data == GENERATED:
        return _generated()
    place, skipped = Path(data).expanduser(), Counter()
    if place.is_dir():
        rows, test = (_read_rows(_only_file(place, name), skipped) for name in ("train", "test"))
    else:
        rows, test = _read_rows(place, skipped), []
    asked_in_test = {_key(row.question) for row in test}
    kept = [row for row in rows if _key(row.question) not in asked_in_test]
    skipped["asked in the test set too"] += len(rows) - len(kept)
    splits = _split(kept, with_test=not test)
    if test:
        known = {row.intent for row in splits["train"]}
        splits["test"] = [row for row in test if row.intent in known]
        skipped["an intent that is only in the test set"] += len(test) - len(splits["test"])
    num_intents = len({row.intent for row in kept})
    if num_intents < MIN_INTENTS:
        raise UserError(f"data={data}: has {num_intents} intents after cleaning; at least {MIN_INTENTS} are needed")
    small = [name for name in SPLITS if not splits[name]]
    if small:
        raise UserError(f"data={data}: {len(kept)} questions are too few; none is left for: {', '.join(small)}")
    return Questions(splits, data, skipped=+skipped)


def read_texts(data: str) -> list[str]:
    """Distinct questions of a file, or of all files of a folder, without their labels."""
    place = Path(data).expanduser()
    files = sorted(f for f in place.iterdir() if f.suffix in SUFFIXES) if place.is_dir() else [place]
    if not files:
        raise UserError(f"out_of_scope={data}: has no file of {', '.join(SUFFIXES)}")
    texts = [row["question"] for file in files for row in read_table(file, {"question": QUESTION})]
    return list(dict.fromkeys(text for text in texts if 0 < len(text) <= MAX_QUESTION_CHARS))


def write_csv(file: Path, rows: Iterable[Row]) -> None:
    """Write rows as a file of the documented form."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "intent", "answer"])
        writer.writerows((row.question, row.intent, row.answer) for row in rows)


def read_csv(file: Path) -> list[Row]:
    """The rows that `write_csv` has written."""
    return [Row(**row) for row in read_table(file, {"question": QUESTION, "intent": INTENT, "answer": ANSWER})]


def _only_file(folder: Path, name: str) -> Path:
    files = [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
    if len(files) != 1:
        found = f"{len(files)} of them" if files else "none"
        raise UserError(f"data={folder}: one file {name}{{{','.join(SUFFIXES)}}} is expected; there is {found}")
    return files[0]


def _read_rows(file: Path, skipped: Counter[str]) -> list[Row]:
    """Rows of a file that can be used; the others are counted by reason."""
    columns = {"question": QUESTION, "intent": INTENT, "answer": ANSWER}
    rows: dict[str, Row] = {}
    for values in read_table(file, columns, optional=["answer"]):
        row = Row(**values)
        first = rows.get(_key(row.question))
        if not row.question:
            skipped["no question"] += 1
        elif not row.intent:
            skipped["no intent"] += 1
        elif len(row.question) > MAX_QUESTION_CHARS:
            skipped[f"longer than {MAX_QUESTION_CHARS} characters"] += 1
        elif first is not None:
            skipped["asked before" if first.intent == row.intent else "asked before with another intent"] += 1
        else:
            rows[_key(row.question)] = row
    return list(rows.values())


def _key(question: str) -> str:
    return question.casefold()


def _split(rows: Sequence[Row], with_test: bool) -> dict[str, list[Row]]:
    """Each intent in the same shares; of a rare one at least one question stays in train."""
    rng = random.Random(SEED)
    by_intent: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_intent[row.intent].append(row)
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for intent in sorted(by_intent):
        left = by_intent[intent]
        rng.shuffle(left)
        for name, share in SHARES.items():
            if name == "test" and not with_test:
                continue
            size = min(_rounded(share * len(by_intent[intent]), rng), len(left) - 1)
            splits[name] += left[:size]
            left = left[size:]
        splits["train"] += left
    for each in splits.values():
        rng.shuffle(each)
    return splits


def _rounded(size: float, rng: random.Random) -> int:
    """Up or down at random, so that many rare intents together have their share."""
    return int(size) + (rng.random() < size % 1)


def _generated() -> Questions:
    """The trainer's generated intents of a shop's customers: the same on every machine."""
    rows = {name: [Row(*pair) for pair in pairs] for name, pairs in intent_rows(GENERATED_SIZES).items()}
    prepared = {name: [row for row in each if row.intent not in UNPREPARED] for name, each in rows.items()}
    middle = len(prepared["val"]) // 3
    splits = {
        "train": prepared["train"],
        "validation": prepared["val"][:middle],
        "held_out": prepared["val"][middle:],
        "test": prepared["test"],
    }
    unprepared = [row.question for row in rows["test"] if row.intent in UNPREPARED]
    return Questions(splits, GENERATED, out_of_scope=unprepared)
