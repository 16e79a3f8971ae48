import hashlib
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from tasks.bert.grammar import NUM_TEST, NUM_VALIDATION, PHRASINGS
from tasks.bert.intents import intent_rows, intent_splits, phrasings_of
from trainer.errors import UserError

SIZES = {"train": 2720, "val": 340, "test": 680}


@pytest.fixture(scope="module")
def rows():
    return intent_rows(SIZES)


def test_there_are_enough_intents_and_distinct_utterances(rows):
    assert len(PHRASINGS) >= 12
    texts = [text for split in rows.values() for text, _ in split]
    assert len(set(texts)) == len(texts) == sum(SIZES.values()) >= 2000


def test_no_phrasing_is_in_two_splits():
    for intent, patterns in PHRASINGS.items():
        assert len(set(patterns)) == len(patterns)
        splits = [set(part) for part in phrasings_of(intent).values()]
        assert set().union(*splits) == set(patterns)
        assert sum(map(len, splits)) == len(patterns)
        assert [len(part) for part in splits][1:] == [NUM_VALIDATION, NUM_TEST]
    everywhere = [pattern for patterns in PHRASINGS.values() for pattern in patterns]
    assert len(set(everywhere)) == len(everywhere)


def test_intents_are_in_equal_numbers_and_mixed(rows):
    for split in rows.values():
        counts = [sum(intent == name for _, intent in split) for name in PHRASINGS]
        assert max(counts) - min(counts) <= 1
        runs = sum(a[1] == b[1] for a, b in pairwise(split))
        assert runs < len(split) / 5


def test_utterances_contain_no_pattern_syntax(rows):
    for split in rows.values():
        assert not [text for text, _ in split if set(text) & set("(){}|") or text != text.strip() or "  " in text]


def test_the_set_is_the_same_in_every_process(rows):
    code = (
        "import hashlib; from tasks.bert.intents import intent_rows; "
        f"print(hashlib.md5(str(intent_rows({SIZES})).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == hashlib.md5(str(rows).encode()).hexdigest()


def test_more_rows_than_distinct_utterances_are_refused():
    with pytest.raises(UserError, match="too few distinct utterances"):
        intent_rows({"train": 100_000})


def test_splits_carry_their_labels_by_name():
    splits = intent_splits({"train": 34, "val": 17, "test": 17})
    assert splits["train"].features["label"].names == list(PHRASINGS)
    assert sorted(splits["val"]["label"]) == list(range(17))
