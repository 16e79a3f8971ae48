"""The application from the command line to the service: train, evaluate, and ask over a real socket."""

import json
import re
import shlex
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from conftest import REPOSITORY, SHARED_DATA

from examples.recommendation.__main__ import main
from examples.recommendation.application import APPLICATION, VECTORS, Recommender
from examples.recommendation.features import FEATURES, OF_TEXT
from examples.recommendation.service import MAX_BODY_BYTES, make_app

QUICK = [
    "trainer.max_steps=12",
    "data.max_validation=50",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
]
README = (REPOSITORY / "examples" / "recommendation" / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("python -m examples.recommendation ").partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.strip().split("\n")
    if line.startswith("python -m examples.recommendation ")
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recommendation")
    assert main(["train", f"out={out}", *QUICK]) == 0
    return out


@pytest.fixture(scope="module")
def recommender(out: Path) -> Recommender:
    return Recommender.read(out)


@pytest.fixture(scope="module")
def client(recommender: Recommender) -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(recommender), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join()


def test_evaluation_prints_and_writes_what_it_measured(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["evaluate", f"out={out}", "k=5", f"result={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "generated: says nothing about real users" in printed
    assert printed.strip() in (tmp_path / "result.md").read_text(encoding="utf-8")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["command"].endswith(f"evaluate out={out} k=5 result={tmp_path}")
    for name in ("ranker", "popularity", "recency", "BM25"):
        for metric in ("recall", "ndcg", "mrr", "novelty"):
            estimate = result["estimates"][name][metric]
            assert estimate["low"] <= estimate["mean"] <= estimate["high"]
            assert f"{estimate['mean']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]" in printed
    assert result["estimates"]["ranker"]["ndcg"]["mean"] > result["estimates"]["popularity"]["ndcg"]["mean"]


def test_the_ranker_without_text_gives_the_encoder_no_weight(out: Path) -> None:
    stored = json.loads((out / APPLICATION).read_text(encoding="utf-8"))
    weights = dict(zip(FEATURES, stored["without_text"]["weights"], strict=True))
    assert {name for name, weight in weights.items() if weight == 0.0} == set(OF_TEXT)
    assert all(weight != 0.0 for weight in stored["ranker"]["weights"])


def test_a_list_has_reasons_that_are_true(recommender: Recommender, client: httpx.Client) -> None:
    catalogue, events = recommender.catalogue, recommender.catalogue.interactions
    history = client.get("/users/7").json()["items"]
    asked = {"history": [each["item"] for each in history], "k": 8}
    listed = client.post("/recommendations", json=asked).json()
    assert len({each["item"] for each in listed}) == 8
    assert not {each["item"] for each in listed} & set(asked["history"])
    scores = [each["score"] for each in listed]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] <= scores[0] < 1
    seen = set()
    numbers = [recommender.numbers[item] for item in asked["history"]]
    for each in listed:
        number = recommender.numbers[each["item"]]
        for reason in each["reasons"]:
            if found := re.fullmatch(r"text similar to “(.*)” \(cosine ([\d.]+)\)", reason):
                cosines = recommender.space.vectors[numbers] @ recommender.space.vectors[number]
                assert catalogue.texts[numbers[int(cosines.argmax())]] == found[1]
                assert float(found[2]) == pytest.approx(cosines.max(), abs=0.006)
                seen.add("text")
            elif found := re.fullmatch(r"([\d,]+) users in the last 180 days", reason):
                newest = events.times.max() - 180 * 86_400
                assert int(found[1].replace(",", "")) == ((events.items == number) & (events.times > newest)).sum()
                seen.add("recency")
    assert seen == {"text", "recency"}


def test_an_item_is_found_by_its_words(client: httpx.Client) -> None:
    found = client.get("/items", params={"text": "COOKING soups"}).json()
    assert found
    assert all("soups" in each["text"] and "cooking" in each["text"] for each in found)
    assert client.get("/items", params={"text": "zzz"}).json() == []


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"history": []}, 422, "history"),
        ({"history": ["nothing"]}, 422, "history: unknown item nothing"),
        ({"history": ["a1"] * 101}, 422, "history"),
        ({"history": ["a1"], "k": 101}, 422, "k"),
        ({"history": ["a1"], "other": 1}, 422, "other"),
        ({"history": ["x" * 1_000_000]}, 413, f"longer than {MAX_BODY_BYTES} bytes"),
    ],
)
def test_bad_requests_are_named(client: httpx.Client, body: dict, status: int, message: str) -> None:
    answer = client.post("/recommendations", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert len(answer.content) < 300


def test_every_error_has_one_form(client: httpx.Client) -> None:
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.delete("/recommendations").json() == {"error": "Method Not Allowed"}
    assert client.get("/items").json() == {"error": "text: Field required"}


def test_another_host_name_is_refused(client: httpx.Client) -> None:
    assert client.get("/status", headers={"Host": "elsewhere.example"}).status_code == 400
    assert client.get("/status").json()["is_generated"] is True


def test_the_page_asks_nobody_else(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    texts = [page.text, *(client.get(name).text for name in ("/page.js", "/page.css"))]
    assert not any("//" in text.replace("; // ", "") and "http" in text for text in texts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "fly: no such verb"),
        (["train", "model=large"], "model=large: tiny or minilm is possible"),
        (["train", "modle=tiny"], "modle=tiny: no such key"),
        (["train", "path=/nowhere"], "path=/nowhere: no items.csv there"),
        (["evaluate", "k=ten"], "k=ten: a whole number is expected"),
        (["evaluate", "out=nothing"], "out=nothing: no application.json there"),
        (["serve", "port=70000"], "port=70000"),
        (["serve", "out=nothing"], "out=nothing: no application.json there"),
    ],
)
def test_user_errors_are_short(
    words: list[str], message: str, in_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) <= 3


def test_damaged_files_are_named(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, content in ((APPLICATION, b"{"), (VECTORS, b"no array"), (VECTORS, None)):
        copy = tmp_path / f"{name}-{content is None}"
        copy.mkdir()
        for file in (APPLICATION, VECTORS):
            (copy / file).write_bytes((out / file).read_bytes())
        (copy / "data").symlink_to(out / "data")
        if content is None:
            np.save(copy / name, np.zeros((3, 4), dtype=np.float32))
        else:
            (copy / name).write_bytes(content)
        assert main(["evaluate", f"out={copy}"]) == 2
        assert f"out={copy}: " in (message := capsys.readouterr().err)
        assert name in message


@pytest.mark.slow
@pytest.mark.parametrize("model", ["default", pytest.param("movielens", marks=pytest.mark.long)])
def test_the_commands_of_the_readme_run(
    model: str, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In order; `serve` is run by the test in the browser."""
    lines = [line for line in COMMANDS if ("movielens" in line) == (model == "movielens") and line != "serve"]
    assert len(lines) == 2
    if model == "movielens" and not SHARED_DATA.exists():
        pytest.skip("the copy of MovieLens is not here")
    for line in lines:
        quick = ["trainer.max_steps=2", "data.max_validation=20"] if "trainer.max_steps" in line else []
        assert main([*shlex.split(line.replace("path/to", str(SHARED_DATA))), *quick]) == 0
    assert "ndcg of the ranker minus popularity" in capsys.readouterr().out
