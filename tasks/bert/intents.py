"""A small generated customer-service set, which needs no network and is the same on every machine.

It shows that training works. The test split has phrasings that are not in the training split, but the same author wrote
both, so the accuracy says nothing about real customers.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from tasks.bert.grammar import CLOSERS, NUM_TEST, NUM_VALIDATION, OPENERS, PHRASINGS, SLOTS
from trainer.errors import UserError

if TYPE_CHECKING:
    import datasets

MAX_TRIES = 200  # draws in a row without a new utterance, after which the grammar counts as exhausted


def phrasings_of(intent: str) -> dict[str, tuple[str, ...]]:
    """Patterns of an intent by split; no pattern is in two splits."""
    patterns = PHRASINGS[intent]
    first_test = len(patterns) - NUM_TEST
    first_val = first_test - NUM_VALIDATION
    return {"train": patterns[:first_val], "val": patterns[first_val:first_test], "test": patterns[first_test:]}


def utterance(pattern: str, rng: random.Random) -> str:
    """A random sentence of a pattern, with an opener and a closer that do not depend on the intent."""
    text = rng.choice(OPENERS) + pattern + rng.choice(CLOSERS)
    while match := re.search(r"\{(\w+)\}|\(([^(){}]*)\)", text):
        text = text[: match.start()] + _choice(match, rng) + text[match.end() :]
    return " ".join(text.split())


def _choice(match: re.Match[str], rng: random.Random) -> str:
    slot, alternatives = match.groups()
    if slot == "number":
        return str(rng.randrange(10_000, 100_000))
    return rng.choice(SLOTS[slot] if slot else alternatives.split("|"))


def intent_rows(sizes: dict[str, int]) -> dict[str, list[tuple[str, str]]]:
    """Rows (text, intent) by split, all texts distinct, intents in equal numbers up to one.

    Args: sizes: rows of each split.
    Raises: UserError: the grammar has fewer distinct utterances.
    """
    rng = random.Random(0)
    seen: set[str] = set()
    splits: dict[str, list[tuple[str, str]]] = {}
    for name, size in sizes.items():
        rows: list[tuple[str, str]] = []
        for number in range(size):
            intent = list(PHRASINGS)[number % len(PHRASINGS)]
            patterns = phrasings_of(intent)[name]
            pattern = patterns[number // len(PHRASINGS) % len(patterns)]
            rows.append((_unseen(pattern, rng, seen), intent))
        rng.shuffle(rows)
        splits[name] = rows
    return splits


def _unseen(pattern: str, rng: random.Random, seen: set[str]) -> str:
    for _ in range(MAX_TRIES):
        text = utterance(pattern, rng)
        if text not in seen:
            seen.add(text)
            return text
    raise UserError(
        f"data=intents: the grammar has too few distinct utterances of: {pattern}",
        "reduce data.num_train, data.num_validation or data.num_test",
    )


def intent_splits(sizes: dict[str, int]) -> dict[str, datasets.Dataset]:
    """The splits as `datasets` with columns text and label."""
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(PHRASINGS))}
    )
    return {
        name: datasets.Dataset.from_dict(
            {"text": [text for text, _ in rows], "label": [intent for _, intent in rows]}, features=features
        )
        for name, rows in intent_rows(sizes).items()
    }
