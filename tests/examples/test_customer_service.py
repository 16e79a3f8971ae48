"""The application of a small file: trained, evaluated, served, changed while it runs, corrected and trained anew."""

import csv
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from customer_application import INTENTS, QUICK, Client, served, train_quickly

from examples.customer_service.__main__ import main
from examples.customer_service.answer_base import AnswerBase
from examples.customer_service.application import Application, split_file
from examples.customer_service.assistant import Assistant
from examples.customer_service.data import read_csv
from examples.customer_service.database import FILE, Database
from examples.customer_service.encoder import Encoder
from examples.customer_service.evaluate import evaluate
from examples.customer_service.matcher import MATCH, OTHER, write_pairs
from examples.customer_service.options import EvaluateOptions
from examples.customer_service.service import MAX_BODY_BYTES
from examples.customer_service.thresholds import Thresholds
from examples.customer_service.train import judge

NEW = "do you sell gift vouchers"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_quickly(tmp_path_factory.mktemp("customer") / "it's, an app")


@pytest.fixture
def assistant(out: Path, tmp_path: Path) -> Assistant:
    """With an answer base of its own, which answers by intent, or what it finds similar."""
    copy = tmp_path / "app"
    shutil.copytree(out, copy, symlinks=True)
    replace(Application.read(copy), thresholds=Thresholds(0.0, 0.9, 0.9)).write(copy)
    return Assistant(copy, {"days": "3"})


@pytest.fixture
def client(assistant: Assistant) -> Iterator[Client]:
    with served(assistant) as client:
        yield client


def test_most_test_questions_are_answered_and_right(out: Path) -> None:
    measured = evaluate(EvaluateOptions(str(out)))
    assert measured.accuracy > 0.9, measured  # three intents: 1/3 by chance
    assert measured.coverage > 0.5 and measured.precision >= 0.9
    assert measured.auroc_confidence is None
    assert f"| {measured.accuracy:.3f} |" in measured.table()


def test_what_is_measured_is_what_the_service_does(out: Path) -> None:
    """The figures by routes against those from the arrays that the thresholds are chosen on."""
    application = Application.read(out)
    encoder = Encoder(out / application.intents_run)
    test = read_csv(split_file(out, "test"))
    judged = judge(test, encoder, AnswerBase(Database(out / FILE), encoder), None)
    right, answered = judged.outcome(application.thresholds.min_confidence, application.thresholds.min_score)
    measured = evaluate(EvaluateOptions(str(out)))
    assert measured.coverage == pytest.approx(answered / len(test))
    assert measured.precision == pytest.approx(right / answered)
    assert measured.by_route.keys() == {"intent", "retrieval"}
    assert sum(number for number, _ in measured.by_route.values()) == answered


def test_neighbours_are_those_of_all_distances(assistant: Assistant) -> None:
    encoded = assistant.encoder.encode(["where is it", "i forgot the password"])
    snapshot = assistant.base.snapshot
    for embedding in encoded.embeddings:
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
        similarities = {}
        for question, intent, row in zip(snapshot.questions, snapshot.intents, snapshot.rows, strict=True):
            similarity = math.fsum(float(a) * float(b) for a, b in zip(embedding, row, strict=True))
            similarities[intent] = max(similarities.get(intent, (-2.0, "")), (similarity, question))
        for found in snapshot.nearest(embedding):
            assert found.score == pytest.approx(similarities[found.intent][0], abs=1e-5)
            source = snapshot.source_question(embedding, found.intent)
            assert source is not None
            assert similarities[found.intent] == pytest.approx((found.score, source)) or source == found.question


def test_a_question_is_answered_with_its_slots_and_its_source(client: Client) -> None:
    status, reply = client("POST", "/answer", {"question": "  please cancel\n order number 48213 "})
    assert (status, reply["route"], reply["intent"]) == (200, "intent", "cancel_order")
    assert reply["answer"] == "about cancel_order: 48213"
    assert reply["slots"] == {"order_number": "48213"}
    assert reply["source_question"] and reply["confidence"] > 1 / 3
    _, log = client("GET", "/log?limit=1")
    assert log[0]["question"] == "please cancel order number 48213" and log[0]["id"] == reply["id"]


def test_an_unsure_question_goes_to_a_person(assistant: Assistant) -> None:
    assistant.application = replace(assistant.application, thresholds=Thresholds(*[math.inf] * 3))
    reply = assistant.answer("please cancel my order")
    assert reply.decision.route == "person" and reply.answer is None


def test_an_answer_is_added_edited_and_deleted_while_the_service_runs(client: Client) -> None:
    body = {"answer": "Vouchers: {days} days.", "questions": [NEW, NEW.upper()], "version": 0}
    assert client("PUT", "/answers/gift%20vouchers", body) == (200, {"version": 1})
    _, reply = client("POST", "/answer", {"question": NEW})
    assert (reply["route"], reply["intent"]) == ("retrieval", "gift vouchers")
    assert reply["answer"] == "Vouchers: 3 days." and reply["source_question"] == NEW.upper()
    status, refused = client("PUT", "/answers/gift%20vouchers", body)
    assert status == 409 and "has version 1 by now, not 0" in refused["error"]
    assert client("PUT", "/answers/gift%20vouchers", {"answer": "None.", "version": 1}) == (200, {"version": 2})
    assert client("POST", "/answer", {"question": NEW})[1]["answer"] == "None."
    assert client("DELETE", "/answers/gift%20vouchers") == (200, {})
    assert client("DELETE", "/answers/gift%20vouchers")[0] == 404
    assert client("POST", "/answer", {"question": NEW})[1]["intent"] in INTENTS


def test_a_deleted_answer_of_the_classifier_is_left_to_a_person(client: Client) -> None:
    question = {"question": "please cancel order number 48213"}
    assert client("DELETE", "/answers/cancel_order")[0] == 200
    reply = client("POST", "/answer", question)[1]
    assert reply["intent"] != "cancel_order" or reply["route"] == "person"
    assert "cancel_order" not in [candidate["intent"] for candidate in reply["candidates"]]


def test_concurrent_edits_lose_nothing_and_show_no_half_state(client: Client, assistant: Assistant) -> None:
    """Eight editors each raise a counter in one answer and in its question; readers always see one of the states."""
    seen: list[tuple[str, str | None]] = []

    def edit(editor: int) -> None:
        for _ in range(3):
            while True:
                version = next((a["version"] for a in client("GET", "/answers")[1] if a["intent"] == "n"), 0)
                body = {"answer": f"state {version + 1}", "questions": [f"question {editor}"], "version": version}
                status, _ = client("PUT", "/answers/n", body)
                if status == 200:
                    break
                assert status == 409
            reply = assistant.answer(f"question {editor}")
            seen.append((reply.decision.intent, reply.template))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(edit, range(8)))
    (answer,) = [each for each in client("GET", "/answers")[1] if each["intent"] == "n"]
    assert (answer["version"], answer["answer"], answer["num_questions"]) == (24, "state 24", 8)
    assert {template for intent, template in seen if intent == "n"} <= {f"state {n}" for n in range(1, 25)}


def test_answers_at_the_same_time_are_those_of_one_at_a_time(assistant: Assistant) -> None:
    questions = [row.question for row in read_csv(split_file(assistant.base.database.file.parent, "test"))]
    wanted = [assistant.answer(question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(assistant.answer, questions * 3))
    assert [(each.decision.route, each.answer) for each in got] == 3 * [
        (each.decision.route, each.answer) for each in wanted
    ]


def test_a_change_that_fails_changes_nothing(assistant: Assistant) -> None:
    before = assistant.base.database.rows("SELECT * FROM answers")
    with pytest.raises(ZeroDivisionError):
        assistant.base.put("n", "answer", (str(1 // number) for number in (1, 0)))
    assert assistant.base.database.rows("SELECT * FROM answers") == before
    assert "n" not in assistant.base.snapshot.answers


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"question": "x" * 2001}, 422, "question: String should have at most 2000 characters"),
        ({"question": " \n"}, 422, "question: is empty"),
        ({"question": "a\0b"}, 422, "question: has a null character"),
        (
            b'{"question": "\\ud800"}',
            422,
            "question: Input should be a valid string, unable to parse raw data as a unicode string",
        ),
        ({"question": 3}, 422, "question: Input should be a valid string"),
        ({}, 422, "question: Field required"),
        ({"question": "where", "more": 1}, 422, "more: Extra inputs are not permitted"),
        (b"{", 422, "JSON decode error"),
        (b'{"question": "\xff"}', 400, "parsing the body"),
        ([], 422, "body: "),
    ],
)
def test_bad_input_is_named(client: Client, body: object, status: int, message: str) -> None:
    got, reply = client("POST", "/answer", body)
    assert (got, message in reply["error"]) == (status, True), reply
    assert len(reply["error"]) < 200


def test_a_million_characters_are_refused_before_they_are_parsed(client: Client) -> None:
    assert client("POST", "/answer", {"question": "x" * 1_000_000}) == (
        413,
        {"error": f"body: longer than {MAX_BODY_BYTES} bytes"},
    )


def test_another_site_cannot_use_the_service(client: Client) -> None:
    assert client("GET", "/log", Host="attacker.example")[0] == 400
    status, _ = client("POST", "/answer", {"question": "where"}, **{"Content-Type": "text/plain"})
    assert status == 422, "a form of another page can send text/plain without asking"


def test_pairs_are_half_right_and_half_answers_of_a_likely_intent(assistant: Assistant, tmp_path: Path) -> None:
    answers = {intent: f"about {intent}" for intent in INTENTS}
    rows = read_csv(split_file(assistant.base.database.file.parent, "train"))
    write_pairs(tmp_path / "pairs.csv", rows, answers, assistant.encoder, 60)
    with (tmp_path / "pairs.csv").open(encoding="utf-8", newline="") as stream:
        pairs = list(csv.DictReader(stream))
    intents = {row.question: row.intent for row in rows}
    assert Counter(pair["label"] for pair in pairs) == {MATCH: 30, OTHER: 30}
    for pair in pairs:
        assert (pair["answer"] == answers[intents[pair["question"]]]) == (pair["label"] == MATCH)


@pytest.mark.slow
def test_a_corrected_question_is_trained_on(assistant: Assistant, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a question that is held out, the correction is not."""
    out = assistant.base.database.file.parent
    held_out = read_csv(split_file(out, "held_out"))[0].question
    with served(assistant) as client:
        client("PUT", "/answers/vouchers", {"answer": "Yes.", "questions": [NEW, "any voucher"]})
        for question in (held_out, "please cancel vouchers"):
            number = client("POST", "/answer", {"question": question})[1]["id"]
            assert client("PUT", f"/log/{number}/correction", {"intent": "vouchers"}) == (200, {})
        status, refused = client("PUT", f"/log/{number}/correction", {"intent": "none"})
        assert status == 422 and "intent=none: has no answer" in refused["error"]
        assert client("PUT", "/log/999/correction", {"intent": "vouchers"})[0] == 404
    before = read_csv(split_file(out, "train"))
    assert main(["retrain", f"out={out}", *QUICK[2:], "trainer.max_steps=2"]) == 0
    assert "3 of them added or corrected" in capsys.readouterr().out
    trained = read_csv(split_file(out, "retrain"))
    assert {row.question for row in trained} - {row.question for row in before} == {
        NEW, "any voucher", "please cancel vouchers",
    }  # fmt: skip
    anew = Assistant(out, {})
    assert "vouchers" in anew.encoder.labels and "vouchers" in anew.base.snapshot.answers
    assert anew.encoder.name != assistant.encoder.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "fly: no such verb; possible: train, evaluate, serve, retrain"),
        (["train", "data"], "data: not of the form key=value"),
        (["train", "dta=x"], "dta=x: no such key; possible: data, answers"),
        (["train", "model=huge"], "model=huge: tiny or minilm"),
        (["train", "precision=2"], "precision=2.0: a share"),
        (["train", "matcher=maybe"], "matcher=maybe: true or false is expected"),
        (["train", "data=nowhere.csv"], "data=nowhere.csv: no such file"),
        (["serve", "port=x"], "port=x: a whole number is expected"),
        (["serve", "trainer.devices=2"], "trainer.devices=2: no such key"),
        (["serve", "out=nowhere"], "out=nowhere: has no application.json"),
        (["evaluate", "out=nowhere"], "out=nowhere: has no application.json"),
        (["retrain", "out=nowhere"], "out=nowhere: has no application.json"),
    ],
)
def test_a_wrong_command_is_named(
    words: list[str], message: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.strip().split("\n")) <= 3


def test_a_damaged_application_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "application.json").write_text(json.dumps({"options": {}}))
    assert main(["serve", f"out={tmp_path}"]) == 2
    assert "damaged" in capsys.readouterr().err
