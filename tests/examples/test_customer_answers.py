"""Slots, thresholds, and that every built-in answer can be filled."""

import csv
import json
import math

import numpy as np
import pytest

from examples.customer_service.answers import FOLDER, FROM_QUESTION, SLOT, answers_of, fill, read_slots
from examples.customer_service.data import Row
from examples.customer_service.thresholds import Judged, Thresholds, choose_thresholds, lower_bound
from trainer import UserError


def test_slots_are_filled_from_the_business_and_the_question() -> None:
    filled = fill("{amount} of {order_number} within {days} days, {who}", "paid €1,250.50 for 48213", {"days": "3"})
    assert filled.text == "€1,250.50 of 48213 within 3 days, {who}"
    assert filled.slots == {"amount": "€1,250.50", "order_number": "48213", "days": "3", "who": None}


@pytest.mark.parametrize(
    ("question", "amount"),
    [("I was charged 20 dollars", "20 dollars"), ("a $5 fee", "$5"), ("top up by 12.50 EUR?", "12.50 EUR"),
     ("3 cards", None), ("order 48213", None), ("2 eurostar tickets", None)],
)  # fmt: skip
def test_an_amount_is_money(question: str, amount: str | None) -> None:
    assert fill("{amount}", question, {}).slots == {"amount": amount}


def test_every_built_in_slot_has_a_value_or_is_taken_from_the_question() -> None:
    values = read_slots("")
    for name in ("banking77.csv", "shop.csv"):
        with (FOLDER / name).open(encoding="utf-8", newline="") as stream:
            used = {slot for row in csv.DictReader(stream) for slot in SLOT.findall(row["answer"])}
        assert used <= {*values, *FROM_QUESTION}


def test_the_most_frequent_answer_of_the_file_goes_before_the_built_in_one() -> None:
    rows = [Row("a", "track_order", "rare"), Row("b", "track_order", "often"), Row("c", "track_order", "often")]
    answers = answers_of([*rows, Row("d", "cancel_order"), Row("e", "of my own")], "")
    assert answers["track_order"] == "often"
    assert "{order_number}" in answers["cancel_order"]
    assert "of my own" not in answers


def test_slots_that_are_no_texts_are_refused(tmp_path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"days": 3}))
    with pytest.raises(UserError, match="a JSON object of texts is expected"):
        read_slots(str(tmp_path / "s.json"))


def test_the_lower_bound_is_the_share_at_which_so_many_right_ones_are_5_percent_likely() -> None:
    """By the binomial distribution itself, summed."""
    bound = lower_bound(95, 100)
    tail = sum(math.comb(100, k) * bound**k * (1 - bound) ** (100 - k) for k in range(95, 101))
    assert tail == pytest.approx(0.05, abs=1e-9)


def judged(seed: int, size: int = 4000) -> Judged:
    """Questions whose answer is right with a probability that follows from its score."""
    rng = np.random.default_rng(seed)
    confidences, scores = rng.uniform(size=size), rng.uniform(size=size)
    return Judged(
        confidences, rng.uniform(size=size) < confidences**0.25, scores, rng.uniform(size=size) < scores**0.25
    )


def test_thresholds_keep_the_precision_on_other_questions() -> None:
    """Of 10 draws nearly all: a threshold by the share itself instead of its bound would miss it in about half."""
    kept = []
    for seed in range(10):
        chosen = choose_thresholds(judged(seed, 600), 0.9)
        right, answered = judged(seed + 1000).outcome(chosen.min_confidence, chosen.min_score)
        assert answered > 100
        kept.append(right / answered >= 0.9)
    assert sum(kept) >= 8


def test_other_thresholds_answer_fewer_or_miss_the_precision() -> None:
    """All pairs of thresholds, counted anew."""
    held_out = judged(0, 101)
    chosen = choose_thresholds(held_out, 0.7)
    kept = {}
    for confidence in [*np.sort(held_out.confidences), math.inf]:
        for score in [*np.sort(held_out.scores), math.inf]:
            answers = [
                intent if own >= confidence else first
                for own, intent, found, first in zip(
                    held_out.confidences,
                    held_out.is_intent_right,
                    held_out.scores,
                    held_out.is_first_right,
                    strict=True,
                )
                if own >= confidence or found >= score
            ]
            if answers and lower_bound(sum(answers), len(answers)) >= 0.7:
                kept[confidence, score] = len(answers)
    assert kept[chosen.min_confidence, chosen.min_score] == max(kept.values())
    alone = {score: number for (confidence, score), number in kept.items() if confidence == math.inf}
    assert alone[chosen.min_added_score] == max(alone.values())


def test_too_few_held_out_questions_answer_nothing() -> None:
    certain = np.ones(20)
    held_out = Judged(certain, certain > 0, certain, certain > 0)
    assert choose_thresholds(held_out, 0.97) == Thresholds(math.inf, math.inf, math.inf)
    assert held_out.outcome(math.inf, math.inf) == (0, 0)
