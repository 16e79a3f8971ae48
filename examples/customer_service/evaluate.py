"""What the application does with questions that it has never seen: of the test set, and out of scope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from examples.customer_service.answers import read_slots
from examples.customer_service.application import OUT_OF_SCOPE, split_file
from examples.customer_service.assistant import Assistant
from examples.customer_service.data import GENERATED, read_csv, read_texts
from examples.customer_service.decision import Decision
from examples.customer_service.options import EvaluateOptions
from examples.customer_service.thresholds import lower_bound


@dataclass(frozen=True)
class Evaluation:
    """Measured figures.

    accuracy: of the most probable intent. found: share of questions whose answer is among retrieval's candidates.
    coverage: share of questions that get an answer. precision: of these, the right ones; at_least: its lower bound.
    by_route: (answers, right ones). auroc_confidence, auroc_similarity: probability that a test question has a higher
    value than one out of scope. outside_answered: share of those that get an answer.
    """

    source: str
    num_test: int
    accuracy: float
    found: float
    coverage: float
    precision: float
    at_least: float
    by_route: dict[str, tuple[int, int]]
    num_outside: int
    auroc_confidence: float | None
    auroc_similarity: float | None
    outside_answered: float | None

    def table(self) -> str:
        """The figures as Markdown."""
        data = "generated questions" if self.source == GENERATED else f"questions of {Path(self.source).name}"
        rows = [
            (f"accuracy of the intent, {self.num_test} test {data}", f"{self.accuracy:.3f}"),
            ("share whose answer is among those that retrieval finds", f"{self.found:.3f}"),
            ("coverage: share of test questions that are answered", f"{self.coverage:.3f}"),
            ("precision: share of these answers that are right; at least, with 95 % confidence",
             f"{self.precision:.3f}; {self.at_least:.3f}"),
        ]  # fmt: skip
        rows += [(f"answers by {name}; right ones", f"{n}; {right}") for name, (n, right) in self.by_route.items()]
        if self.num_outside:
            rows += [
                (
                    f"AUROC of the confidence, against {self.num_outside} questions out of scope",
                    f"{self.auroc_confidence:.3f}",
                ),
                ("AUROC of the similarity, against the same", f"{self.auroc_similarity:.3f}"),
                ("share of these that is answered", f"{self.outside_answered:.3f}"),
            ]
        return "\n".join(["| measured | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def evaluate(options: EvaluateOptions) -> Evaluation:
    """Measure an application on its test set. Raises: UserError: it is not complete, or a file cannot be read."""
    out = Path(options.out)
    assistant = Assistant(out, read_slots(""))
    test = read_csv(split_file(out, "test"))
    own = split_file(out, OUT_OF_SCOPE)
    source = options.out_of_scope or (str(own) if own.is_file() else "")
    return _figures(
        assistant.application.options.data,
        [row.intent for row in test],
        _decide(assistant, [row.question for row in test]),
        _decide(assistant, read_texts(source) if source else []),
    )


def _decide(assistant: Assistant, questions: Sequence[str]) -> list[Decision]:
    if not questions:
        return []
    encoded, snapshot = assistant.encoder.encode(questions), assistant.base.snapshot
    rows = zip(questions, encoded.probabilities, encoded.embeddings, strict=True)
    return [assistant.decide(*row, snapshot) for row in rows]


def _figures(
    source: str, intents: Sequence[str], decisions: Sequence[Decision], outside: Sequence[Decision]
) -> Evaluation:
    pairs = list(zip(intents, decisions, strict=True))
    answered = [(each.route, intent == each.intent) for intent, each in pairs if each.route != "person"]
    num_right = sum(is_right for _, is_right in answered)
    by_route: dict[str, tuple[int, int]] = {}
    for route in ("intent", "retrieval"):
        taken = [is_right for name, is_right in answered if name == route]
        by_route[route] = (len(taken), sum(taken))
    is_inside = np.repeat([1, 0], [len(decisions), len(outside)])

    def auroc(values: list[float]) -> float | None:
        return float(roc_auc_score(is_inside, values)) if outside else None

    return Evaluation(
        source=source,
        num_test=len(intents),
        accuracy=float(np.mean([intent == each.likely for intent, each in pairs])),
        found=float(np.mean([intent in [c.intent for c in each.candidates] for intent, each in pairs])),
        coverage=len(answered) / len(intents),
        precision=num_right / len(answered) if answered else float("nan"),
        at_least=float(lower_bound(num_right, len(answered))),
        by_route=by_route,
        num_outside=len(outside),
        auroc_confidence=auroc([each.confidence for each in [*decisions, *outside]]),
        auroc_similarity=auroc([each.similarity for each in [*decisions, *outside]]),
        outside_answered=float(np.mean([each.route != "person" for each in outside])) if outside else None,
    )
