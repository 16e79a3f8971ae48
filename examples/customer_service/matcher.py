"""A model of pairs (question, answer) that orders the answers which retrieval has found."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import trainer
from examples.customer_service.data import SEED, Row
from examples.customer_service.decision import Candidate
from examples.customer_service.encoder import Encoder

MATCH, OTHER = "match", "other"


class Matcher:
    """The trained model of pairs."""

    def __init__(self, run_dir: Path) -> None:
        self.model = trainer.load(run_dir, device="cpu", precision="32-true")

    def ranked(self, question: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Candidates with the probability that they answer the question as score, the best one first."""
        if not candidates:
            return []
        results = self.model([(question, each.answer) for each in candidates])
        scored = [
            replace(each, score=result["probabilities"][MATCH])
            for each, result in zip(candidates, results, strict=True)
        ]
        return sorted(scored, key=lambda each: -each.score)


def write_pairs(file: Path, rows: Sequence[Row], answers: Mapping[str, str], encoder: Encoder, size: int) -> None:
    """Write pairs (question, answer, label): half of them questions with their answers, half with a wrong one.

    The wrong one is the answer of another intent that is probable, since retrieval finds answers that are close.
    """
    rng = random.Random(SEED)
    usable = [row for row in rows if row.intent in answers]
    chosen = rng.sample(usable, min(size // 2, len(usable)))
    probabilities = encoder.encode([row.question for row in chosen]).probabilities
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer", "label"])
        for row, each in zip(chosen, probabilities, strict=True):
            likely = [encoder.labels[number] for number in np.argsort(-each)[:4]]
            wrong = [intent for intent in likely if intent != row.intent and intent in answers][:2]
            writer.writerow([row.question, answers[row.intent], MATCH])
            if wrong:
                writer.writerow([row.question, answers[rng.choice(wrong)], OTHER])
