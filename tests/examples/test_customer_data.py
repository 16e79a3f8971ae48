"""Files of questions: what is refused, what is skipped and counted, and that no test question is trained on."""

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import SHARED_DATA

from examples.customer_service.data import GENERATED, MAX_QUESTION_CHARS, SPLITS, UNPREPARED, read_questions, read_texts
from trainer import UserError


def write_csv(file: Path, rows: list[tuple[str, ...]], header: str = "question,intent") -> Path:
    file.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return file


def good_rows(number: int = 60) -> list[tuple[str, ...]]:
    return [(f"{intent} question {each}", intent) for each in range(number) for intent in ("cancel", "track")]


def test_every_question_is_in_one_split_and_every_intent_in_each(tmp_path: Path) -> None:
    read = read_questions(str(write_csv(tmp_path / "q.csv", good_rows())))
    everything = [row for split in SPLITS for row in read.splits[split]]
    assert Counter((row.question, row.intent) for row in everything) == Counter(good_rows())
    assert {split: len(rows) for split, rows in read.splits.items()} == {
        "train": 84, "validation": 6, "held_out": 12, "test": 18,
    }  # fmt: skip
    assert all({row.intent for row in rows} == {"cancel", "track"} for rows in read.splits.values())
    assert read_questions(str(tmp_path / "q.csv")) == read


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    bad = [
        ("CANCEL question 0", "cancel"), ("track question 0", "cancel"), ("", "cancel"), ("which", " "),
        ("x" * 1_000_000, "cancel"), (f"{'y' * (MAX_QUESTION_CHARS + 1)}", "track"),
    ]  # fmt: skip
    read = read_questions(str(write_csv(tmp_path / "q.csv", [*good_rows(), *bad])))
    assert read.skipped == {
        "asked before": 1,
        "asked before with another intent": 1,
        "no question": 1,
        "no intent": 1,
        f"longer than {MAX_QUESTION_CHARS} characters": 2,
    }
    assert sum(map(len, read.splits.values())) == 120


def test_a_question_of_the_test_file_is_not_trained_on(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", good_rows())
    write_csv(tmp_path / "test.csv", [("Cancel Question 7", "cancel"), ("new", "track"), ("what", "unknown")])
    read = read_questions(str(tmp_path))
    assert [row.question for row in read.splits["test"]] == ["Cancel Question 7", "new"]
    trained = {row.question.casefold() for split in SPLITS[:3] for row in read.splits[split]}
    assert "cancel question 7" not in trained and len(trained) == 119
    assert read.skipped == {"asked in the test set too": 1, "an intent that is only in the test set": 1}


def test_json_lines_with_answers_and_other_column_names(tmp_path: Path) -> None:
    rows = [{"text": question, "label": intent, "answer": f"to {intent}"} for question, intent in good_rows()]
    file = tmp_path / "q.jsonl"
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    splits = read_questions(str(file)).splits
    assert {row.answer for row in splits["train"]} == {"to cancel", "to track"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", b"", "has no rows"),
        ("q.csv", b"question,intent\n", "has no rows"),
        ("q.csv", b"query,intent\nwhere,track\n", "no column question or text or sentence; it has query, intent"),
        ("q.csv", "question,intent\nwo ist das Päckchen,track\n".encode("cp1252"), "line 2: byte 0xe4 is not UTF-8"),
        ("q.csv", "question,intent\nwhere,track\n".encode("utf-16"), "is not UTF-8"),
        ("q.csv", b"question,intent\nwhere,track\nwhen,track\n", "has 1 intents"),
        ("q.csv", b"question,intent\nwhere,track\nstop,cancel\n", "too few; none is left for"),
        ("q.csv", b'question,intent\n"where,track\n', "is no CSV file"),
        ("q.jsonl", b'{"question": "where"\n', "line 1 is no JSON object"),
        ("q.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("q.jsonl", b"[" * 100_000, "line 1 is no JSON object"),
        ("q.parquet", b"PAR1", "is no Parquet file"),
        ("q.xlsx", b"", "a file of .csv, .jsonl, .parquet is expected"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_questions(str(tmp_path / name))
    assert message in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).split("\n")) <= 3


def test_a_folder_without_a_test_file_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", good_rows())
    with pytest.raises(UserError, match="one file test"):
        read_questions(str(tmp_path))


def test_the_generated_set_asks_unprepared_questions_only_out_of_scope() -> None:
    read = read_questions(GENERATED)
    assert not {row.intent for rows in read.splits.values() for row in rows} & set(UNPREPARED)
    assert len(read.out_of_scope) == 120
    texts = [row.question for rows in read.splits.values() for row in rows] + read.out_of_scope
    assert len(set(texts)) == len(texts)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real sets are not here")
def test_banking77_has_names_of_intents_and_no_test_question_in_train() -> None:
    read = read_questions(str(SHARED_DATA / "banking77"))
    assert {len({row.intent for row in rows}) for rows in read.splits.values()} == {77}
    assert "card_arrival" in {row.intent for row in read.splits["test"]}
    test = {row.question.casefold() for row in read.splits["test"]}
    assert not test & {row.question.casefold() for split in SPLITS[:3] for row in read.splits[split]}
    assert len(read_texts(str(SHARED_DATA / "sst2" / "validation.parquet"))) == 872
