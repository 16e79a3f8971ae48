"""Answer templates by intent, and their slots."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.customer_service.data import Row
from examples.customer_service.tables import ANSWER, INTENT, read_table
from trainer import UserError

FOLDER = Path(__file__).parent / "answers"
SLOT = re.compile(r"\{(\w+)\}")
CURRENCY = r"(?:euros?|eur|pounds?|gbp|dollars?|usd|chf|aud|[€£$])"
# Slots that are taken from the question.
FROM_QUESTION = {
    "order_number": re.compile(r"\b\d{5,12}\b"),
    "amount": re.compile(rf"[€£$] ?\d[\d.,]*\d|[€£$] ?\d|\b\d[\d.,]* ?{CURRENCY}(?!\w)", re.IGNORECASE),
}


@dataclass(frozen=True)
class Filled:
    """text: the answer; a slot without a value stays in it as {name}. slots: values by name, None where unknown."""

    text: str
    slots: dict[str, str | None]


def fill(template: str, question: str, values: Mapping[str, str]) -> Filled:
    """Fill a template's slots from the business's own values, then from the question."""
    slots: dict[str, str | None] = {}
    for name in SLOT.findall(template):
        found = FROM_QUESTION[name].search(question) if name in FROM_QUESTION else None
        slots[name] = values.get(name) or (found.group() if found else None)
    return Filled(SLOT.sub(lambda match: slots[match[1]] or match[0], template), slots)


def read_slots(file: str) -> dict[str, str]:
    """Values of slots from a JSON object of texts; "" reads the built-in example values. Raises: UserError."""
    place = Path(file).expanduser() if file else FOLDER / "slots.json"
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"slots={place}: is no JSON file: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise UserError(f"slots={place}: a JSON object of texts is expected")
    return values


def answers_of(rows: Iterable[Row], file: str) -> dict[str, str]:
    """The answer of each intent of the rows: from a file, else the most frequent one of the rows, else built in.

    An intent without any is left out: its questions go to a person. Raises: UserError: the file cannot be read.
    """
    given = _read(Path(file).expanduser()) if file else {}
    built_in = {**_read(FOLDER / "banking77.csv"), **_read(FOLDER / "shop.csv")}
    best: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        best[row.intent].update([row.answer] if row.answer else [])
    answers = {
        intent: given.get(intent) or (counts.most_common(1)[0][0] if counts else built_in.get(intent, ""))
        for intent, counts in best.items()
    }
    return {intent: answer for intent, answer in sorted(answers.items()) if answer}


def _read(file: Path) -> dict[str, str]:
    rows = read_table(file, {"intent": INTENT, "answer": ANSWER})
    return {row["intent"]: row["answer"] for row in rows if row["intent"] and row["answer"]}
