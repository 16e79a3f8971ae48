"""Train both models by the trainer, choose the thresholds on held-out questions, and fill the answer base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import trainer
from examples.customer_service.answer_base import AnswerBase
from examples.customer_service.answers import answers_of
from examples.customer_service.application import OUT_OF_SCOPE, Application, split_file
from examples.customer_service.data import SPLITS, Row, read_csv, read_questions, write_csv
from examples.customer_service.database import FILE, Database
from examples.customer_service.encoder import Encoder
from examples.customer_service.matcher import Matcher, write_pairs
from examples.customer_service.options import RetrainOptions, TrainOptions
from examples.customer_service.thresholds import Judged, choose_thresholds

RECIPES = Path(__file__).parent / "recipe"


class Stopped(Exception):
    """Training was stopped on request."""


def train(options: TrainOptions, for_trainer: Sequence[str]) -> None:
    """Train from files. Args: for_trainer: overrides of both runs. Raises: UserError, Stopped."""
    out, questions = Path(options.out), read_questions(options.data)
    for reason, count in questions.skipped.items():
        print(f"skipped {count} rows: {reason}")
    rows = [row for split in SPLITS for row in questions.splits[split]]
    answers = answers_of(rows, options.answers)
    if without := sorted({row.intent for row in rows} - answers.keys()):
        print(f"without an answer, so always for a person: {', '.join(without)}")
    split_file(out, "train").parent.mkdir(parents=True, exist_ok=True)
    for split, each in questions.splits.items():
        write_csv(split_file(out, split), each)
    split_file(out, OUT_OF_SCOPE).unlink(missing_ok=True)
    if questions.out_of_scope:
        write_csv(split_file(out, OUT_OF_SCOPE), [Row(text, "") for text in questions.out_of_scope])
    encoder = _train_intents(out, split_file(out, "train"), options, for_trainer)
    base = AnswerBase(Database(out / FILE), encoder)
    base.replace(answers, questions.splits["train"])
    _complete(options, encoder, base, questions.splits["train"], for_trainer)


def retrain(options: RetrainOptions, for_trainer: Sequence[str]) -> None:
    """Train anew from the old questions, those added to the answer base and the corrected ones of the log.

    Held-out and test questions stay what they are, and none of them is trained on. Raises: UserError, Stopped.
    """
    out = Path(options.out)
    before = replace(Application.read(out).options, out=options.out)
    database = Database(out / FILE)
    added = "SELECT question, intent FROM questions WHERE is_added"
    corrected = "SELECT question, correction AS intent FROM log WHERE correction IS NOT NULL ORDER BY id"
    new = {row["question"].casefold(): Row(**row) for query in (added, corrected) for row in database.rows(query)}
    for split in ("validation", "held_out", "test"):
        for row in read_csv(split_file(out, split)):
            new.pop(row.question.casefold(), None)
    old = [row for row in read_csv(split_file(out, "train")) if row.question.casefold() not in new]
    rows = [*old, *new.values()]
    print(f"{len(rows)} questions, {len(new)} of them added or corrected")
    write_csv(split_file(out, "retrain"), rows)
    encoder = _train_intents(out, split_file(out, "retrain"), before, for_trainer)
    base = AnswerBase(database, encoder)
    base.add_questions(new.values())
    _complete(before, encoder, base, rows, for_trainer)


def _train_intents(out: Path, file: Path, options: TrainOptions, for_trainer: Sequence[str]) -> Encoder:
    files = {"train": file, "validation": split_file(out, "validation"), "test": split_file(out, "test")}
    return Encoder(_fit(out, "customer_intents", options, files, for_trainer))


def _complete(
    options: TrainOptions, encoder: Encoder, base: AnswerBase, rows: Sequence[Row], for_trainer: Sequence[str]
) -> None:
    """Train the matcher, choose the thresholds, and write which runs and thresholds the service uses."""
    out, matcher_run = Path(options.out), None
    if options.matcher:
        pairs = split_file(out, "pairs")
        write_pairs(pairs, rows, base.snapshot.answers, encoder, options.matcher_pairs)
        matcher_run = _fit(out, "customer_matcher", options, {"train": pairs}, for_trainer)
    held_out = read_csv(split_file(out, "held_out"))
    judged = judge(held_out, encoder, base, None)
    if matcher_run is not None:
        with_matcher = judge(held_out, encoder, base, Matcher(matcher_run))
        shares = f"{with_matcher.is_first_right.mean():.3f}, similarity of {judged.is_first_right.mean():.3f}"
        is_better = with_matcher.is_first_right.sum() > judged.is_first_right.sum()
        print(f"the matcher's first answer is right for {shares}: it is {'used' if is_better else 'not used'}")
        judged, matcher_run = (with_matcher, matcher_run) if is_better else (judged, None)
    thresholds = choose_thresholds(judged, options.precision)
    right, answered = judged.outcome(thresholds.min_confidence, thresholds.min_score)
    print(f"held out: {answered} of {len(held_out)} questions answered, {right} of them right")
    intents_run = str(encoder.run_dir.relative_to(out))
    matcher = None if matcher_run is None else str(matcher_run.relative_to(out))
    Application(options, intents_run, matcher, thresholds).write(out)
    print(f"ready; next: python -m examples.customer_service evaluate out={out}, or serve out={out}")


def judge(rows: Sequence[Row], encoder: Encoder, base: AnswerBase, matcher: Matcher | None) -> Judged:
    """What the models say about questions whose intents are known."""
    encoded, snapshot = encoder.encode([row.question for row in rows]), base.snapshot
    found = [snapshot.nearest(embedding) for embedding in encoded.embeddings]
    if matcher is not None:
        found = [matcher.ranked(row.question, each) for row, each in zip(rows, found, strict=True)]
    chosen = [encoder.labels[number] for number in encoded.probabilities.argmax(1)]
    has_answer = np.array([intent in snapshot.answers for intent in chosen])
    return Judged(
        confidences=np.where(has_answer, encoded.probabilities.max(1), 0.0),
        is_intent_right=np.array([row.intent == intent for row, intent in zip(rows, chosen, strict=True)]),
        scores=np.array([each[0].score if each else 0.0 for each in found]),
        is_first_right=np.array(
            [bool(each) and each[0].intent == row.intent for row, each in zip(rows, found, strict=True)]
        ),
    )


def _fit(out: Path, recipe: str, options: TrainOptions, files: Mapping[str, Path], for_trainer: Sequence[str]) -> Path:
    """Train by a recipe. Returns: the run directory. Raises: UserError; Stopped: on request."""
    experiment = recipe if options.model == "tiny" else f"{recipe}_{options.model}"
    data = [f"data.{split}={_quoted(file)}" for split, file in files.items()]
    result = trainer.fit(
        f"--config-dir={RECIPES}",
        f"experiment={experiment}",
        *data,
        f"run.root={_quoted(out / 'runs')}",
        "logger=none",
        *for_trainer,
    )
    if result.status == "stopped":
        raise Stopped
    return result.run_dir


def _quoted(path: Path) -> str:
    """A path as Hydra reads it, whatever characters it has."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
