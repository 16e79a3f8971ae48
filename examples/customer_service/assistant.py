"""From a question to an answer, or to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.customer_service.answer_base import AnswerBase, Snapshot
from examples.customer_service.answers import fill
from examples.customer_service.application import Application
from examples.customer_service.database import FILE, Database
from examples.customer_service.decision import Candidate, Decision, Route
from examples.customer_service.encoder import Encoder
from examples.customer_service.matcher import Matcher


@dataclass(frozen=True)
class Reply:
    """A decision with the filled answer. source_question: a question of the past with the same answer.

    answer, template, source_question are None where a person has to answer. slots: see `answers.Filled`.
    """

    decision: Decision
    answer: str | None
    template: str | None
    slots: Mapping[str, str | None]
    source_question: str | None


class Assistant:
    """A trained application, ready to answer. Its methods may be called from several threads."""

    def __init__(self, out: Path, slots: Mapping[str, str]) -> None:
        """Args: out: folder of the application. Raises: UserError: it is not complete."""
        self.application = Application.read(out)
        self.encoder = Encoder(out / self.application.intents_run)
        matcher = self.application.matcher_run
        self.matcher = None if matcher is None else Matcher(out / matcher)
        self.base = AnswerBase(Database(out / FILE), self.encoder)
        self.slots = slots

    def answer(self, question: str) -> Reply:
        """Answer a question, and leave it to a person where that is not safe."""
        encoded, snapshot = self.encoder.encode([question]), self.base.snapshot
        decision = self.decide(question, encoded.probabilities[0], encoded.embeddings[0], snapshot)
        if decision.route == "person":
            return Reply(decision, None, None, {}, None)
        template = snapshot.answers[decision.intent]
        filled = fill(template, question, self.slots)
        source = snapshot.source_question(encoded.embeddings[0], decision.intent)
        return Reply(decision, filled.text, template, filled.slots, source)

    def decide(self, question: str, probabilities: np.ndarray, embedding: np.ndarray, snapshot: Snapshot) -> Decision:
        """Choose the route. Args: probabilities (C,), embedding (H,): of the question."""
        best = int(probabilities.argmax())
        likely, confidence = self.encoder.labels[best], float(probabilities[best])
        candidates, thresholds = snapshot.nearest(embedding), self.application.thresholds
        similarity = candidates[0].score if candidates else 0.0

        def decision(route: Route, intent: str) -> Decision:
            return Decision(route, intent, likely, confidence, similarity, candidates)

        is_sure = confidence >= thresholds.min_confidence and likely in snapshot.answers
        if is_sure and not self._was_added(candidates):
            return decision("intent", likely)
        if self.matcher is not None:
            candidates = self.matcher.ranked(question, candidates)
        if candidates and self._was_added(candidates) and candidates[0].score >= thresholds.min_added_score:
            return decision("retrieval", candidates[0].intent)
        if is_sure:
            return decision("intent", likely)
        if candidates and not self._was_added(candidates) and candidates[0].score >= thresholds.min_score:
            return decision("retrieval", candidates[0].intent)
        return decision("person", likely)

    def _was_added(self, candidates: Sequence[Candidate]) -> bool:
        """Whether the first answer was added after training, so that the classifier cannot choose it."""
        return bool(candidates) and candidates[0].intent not in self.encoder.labels
