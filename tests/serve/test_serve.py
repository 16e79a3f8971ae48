"""What a server answers: results, batches, state, and who may ask."""

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dcgan_runs import DCGAN, SHORT
from exports import rewrite_manifest
from PIL import Image
from servers import ANSWER_S, RunningServer, multipart, serving
from watching import wait_until

from trainer.cli import main
from trainer.export import ExportedModel, load

# The first test of a module trains and exports, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(1200)

TEXTS = ["the film was bright", "dull", "we saw it in town and it was a day with them", "the the the the"]
# Long enough to fill a batch on any machine.
FULL = ["max_wait_ms=2000", "max_batch=16"]


@pytest.fixture(scope="module")
def texts(text_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(text_export, "access_log=true", log=tmp_path_factory.mktemp("log") / "texts") as server:
        yield server


@pytest.fixture(scope="module")
def images(image_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(image_export, log=tmp_path_factory.mktemp("log") / "images") as server:
        yield server


def alike(found: Any, expected: Any) -> None:
    """Results up to the last bits, which differ with the size of a batch."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def pictures(count: int) -> list[bytes]:
    files = []
    for pixels in np.random.default_rng(7).integers(0, 256, (count, 32, 32), dtype=np.uint8):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        files.append(stream.getvalue())
    return files


def test_texts_are_classified_as_by_the_loaded_export(texts: RunningServer, text_export: Path) -> None:
    expected = load(text_export)(TEXTS)
    assert {result["label"] for result in expected} <= {"good", "bad"}
    for text, result in zip(TEXTS, expected, strict=True):
        answer = texts.predict({"text": text})
        alike(answer.json["results"], [result])
        assert 0 < answer.json["latency_ms"] < 1000 * 60
    alike(texts.predict({"inputs": TEXTS}).json["results"], expected)
    alike(texts.predict({"inputs": [{"text": text} for text in TEXTS]}).json["results"], expected)


def test_images_are_classified_as_by_the_loaded_export(images: RunningServer, image_export: Path) -> None:
    files = pictures(3)
    expected = load(image_export)(files)
    body, content_type = multipart(files)
    alike(images.ask("POST", "/predict", body, Content_Type=content_type).json["results"], expected)
    encoded = [{"image": base64.b64encode(file).decode()} for file in files]
    alike(images.predict(encoded[0]).json["results"], expected[:1])
    alike(images.predict({"inputs": encoded}).json["results"], expected)


def test_the_model_is_described(texts: RunningServer, images: RunningServer, image_export: Path) -> None:
    text, image = texts.get("/model").json, images.get("/model").json
    assert (text["task"], text["kind"], text["labels"]) == ("bert", "text", ["bad", "good"])
    assert (image["task"], image["kind"], image["labels"]) == ("cnn", "image", [str(digit) for digit in range(10)])
    assert (image["format"], image["source_run"]) == ("onnx", "lenet")
    parity = load(image_export).manifest.parity
    assert image["metric"] == {"name": "val/accuracy", "value": parity.of_export, "run": parity.of_run}
    assert image["limits"]["max_inputs"] == 64


def test_many_clients_get_their_own_results_in_batches(text_export: Path, tmp_path: Path) -> None:
    sent = [" ".join(TEXTS[number % 4].split()[: 1 + number % 9]) for number in range(64)]
    model = load(text_export)
    with serving(text_export, *FULL, log=tmp_path / "log") as server:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda text: server.predict({"text": text}), sent))
        for text, answer in zip(sent, answers, strict=True):
            alike(answer.json["results"], model([text]))
        assert server.metric("trainer_serve_batch_inputs_sum") == 64
        assert server.metric("trainer_serve_batch_inputs_count") <= 32
        counted = {"route": "/predict", "status": "200"}
        wait_until(lambda: server.metric("trainer_serve_requests_total", **counted) == 64, ANSWER_S)
        assert server.metric("trainer_serve_latency_seconds_count", route="/predict") == 64
        assert server.metric("trainer_serve_queue_inputs") == 0


def test_without_batches_every_input_is_computed_alone(image_export: Path, tmp_path: Path) -> None:
    with serving(image_export, "max_batch=1", "workers=2", "device=cpu", log=tmp_path / "log") as server:
        body, content_type = multipart(pictures(9))
        alike(
            server.ask("POST", "/predict", body, Content_Type=content_type).json["results"],
            load(image_export)(pictures(9)),
        )
        assert server.metric("trainer_serve_batch_inputs_count") == 9
        assert server.get("/model").json["devices"] == ["cpu", "cpu"]


def test_pages_ask_nobody_else(texts: RunningServer) -> None:
    for path in ("/", "/docs"):
        page = texts.get(path)
        assert page.status == 200
        assert page.headers["content-type"].startswith("text/html")
        assert b"://" not in page.body
        assert "default-src 'none'" in page.headers["content-security-policy"]
    schema = texts.get("/openapi.json").json
    assert set(schema["paths"]) == {"/predict", "/model", "/health", "/ready", "/metrics"}
    assert {"400", "413", "422", "429", "503"} <= set(schema["paths"]["/predict"]["post"]["responses"])
    assert "/predict" in texts.get("/docs").body.decode()


def test_the_access_log_has_one_line_for_a_request(texts: RunningServer) -> None:
    texts.get("/model")
    wait_until(lambda: texts.log.endswith("ms\n") and " /model 200 " in texts.log.split("\n")[-2], ANSWER_S)
    before = texts.log.count("\n")
    texts.get("/health")
    texts.get("/a%1b%0ab")
    wait_until(lambda: texts.log.count("\n") >= before + 2, ANSWER_S)  # written when the answer has been sent
    new = texts.log.split("\n")[before:-1]
    assert len(new) == 2
    assert " GET /health 200 " in new[0]
    assert r" GET /a\x1b\nb 404 " in new[1], "control characters of a client do not reach a terminal"


@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_key_is_required(source: str, image_export: Path, tmp_path: Path) -> None:
    key = "secret-of-this-test"
    (tmp_path / "key").write_text(f"{key}\n")
    words = [f"api_key_file={tmp_path / 'key'}"] if source == "file" else []
    env = {} if source == "file" else {"TRAINER_SERVE_API_KEY": key}
    with serving(image_export, "access_log=true", *words, log=tmp_path / "log", env=env) as server:
        body, content_type = multipart(pictures(1))
        for given in ({}, *({"Authorization": text} for text in (key, "Bearer", f"Bearer {key}x", f"Basic {key}"))):
            answer = server.ask("POST", "/predict", body, Content_Type=content_type, **given)
            assert answer.status == 401
            assert "key" in answer.error and answer.headers["www-authenticate"] == "Bearer"
            assert server.get("/metrics", **given).status == 401
        right = {"Authorization": f"Bearer {key}"}
        assert server.ask("POST", "/predict", body, Content_Type=content_type, **right).status == 200
        assert server.get("/metrics", **right).status == 200
        assert server.get("/health").status == server.get("/ready").status == server.get("/model").status == 200
        assert key not in server.log


def test_neither_torch_nor_lightning_is_imported() -> None:
    barred = ("torch", "pytorch_lightning", "tasks")
    code = f"import sys, trainer.serve.server; print([name for name in {barred} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Any:
    """The message of a command that ends with 2."""

    def run(*words: str) -> str:
        assert main(["serve", *words]) == 2
        error = capsys.readouterr().err
        assert len(error.strip().split("\n")) <= 3
        return error

    return run


def test_a_run_without_an_export_says_how_to_export(fail: Any, image_export: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((image_export.parents[1] / "run.json").read_text())
    assert f"python -m trainer export run={tmp_path} format=onnx" in fail(f"run={tmp_path}")
    assert "format=onnx_int8" in fail(f"run={image_export.parents[1]}", "format=onnx_int8")
    assert "no such format" in fail(f"run={image_export.parents[1]}", "format=onnxx")
    assert "no export" in fail(f"export={tmp_path}")
    assert "needs run=DIR or export=DIR" in fail()
    assert "has an effect only with run=DIR" in fail(f"export={image_export}", "format=onnx")


def test_wrong_arguments(fail: Any, image_export: Path, tmp_path: Path) -> None:
    place = f"export={image_export}"
    assert "did you mean max_batch?" in fail(place, "max_bach=3")
    assert "port=99999" in fail(place, "port=99999")
    assert "max_batch=0" in fail(place, "max_batch=0")
    assert "max_inputs=64" in fail(place, "max_queue=8")
    assert "host=no.such.host.invalid" in fail(place, "host=no.such.host.invalid")
    assert "cannot be read" in fail(place, f"api_key_file={tmp_path / 'missing'}")
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in fail(place, f"api_key_file={tmp_path / 'empty'}")


def test_a_port_that_is_taken(fail: Any, images: RunningServer, image_export: Path) -> None:
    assert f"port={images.port}: Address already in use" in fail(f"export={image_export}", f"port={images.port}")


def test_an_export_that_computes_something_else_is_not_served(fail: Any, image_export: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_export, tmp_path / "onnx")
    outputs = np.load(folder / "probes.npy")
    np.save(folder / "probes.npy", outputs + 0.01)
    rewrite_manifest(folder)
    assert "outputs of its probes differ by 0.01" in fail(f"export={folder}", "port=0")
    (folder / "probes.npy").unlink()
    (folder / "probes.json").unlink()
    rewrite_manifest(folder)
    assert "export the run again" in fail(f"export={folder}", "port=0")


def test_probes_that_are_code_are_not_run(fail: Any, image_export: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_export, tmp_path / "onnx")
    np.save(folder / "probes.npy", np.array([Planted(tmp_path / "ran")], dtype=object), allow_pickle=True)
    rewrite_manifest(folder)
    assert "probes.npy is damaged" in fail(f"export={folder}", "port=0")
    assert not (tmp_path / "ran").exists()
    np.load(folder / "probes.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists(), "the planted code works"


class Planted:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.slow
def test_a_generator_gives_the_images_of_predict(tmp_path: Path) -> None:
    words = [f"run.root={tmp_path}", "run.name=gan"]
    assert main([*DCGAN, *SHORT, *words]) == 0
    run = tmp_path / "dcgan" / "gan"
    assert main(["export", f"run={run}", "format=onnx"]) == 0
    assert main(["predict", f"run={run}", "n=5", "seed=3"]) == 0
    with serving(run / "export" / "onnx", log=tmp_path / "log") as server:
        results = server.predict({"n": 5, "seed": 3}).json["results"]
        for number, result in enumerate(results):
            found = np.asarray(Image.open(io.BytesIO(base64.b64decode(result["png_base64"])))).astype(int)
            expected = np.asarray(Image.open(run / "samples" / "generated-seed3-n5" / f"{number:06d}.png"))
            assert np.abs(found - expected).max() <= 1
        assert server.get("/model").json["kind"] == "noise"
        assert server.predict({"inputs": [0, 1]}).json["results"] == server.predict({"n": 2}).json["results"]
        assert len(server.predict({"inputs": [[0.5] * 16]}).json["results"]) == 1
        wrong = [{"n": 0}, {"n": -1}, {"n": 1.5}, {"n": True}, {"n": "4"}, {"seed": 1}, {"n": 1, "seed": -1}]
        wrong += [{"n": 1, "seed": 2**32}, {"n": 1, "noise": 1}, {"inputs": [[0.5] * 15]}, {"inputs": [[10**400] * 16]}]
        wrong += [{"inputs": [[1e300] * 16]}, {"inputs": [-1]}, {"inputs": [True]}, {"inputs": ["1"]}]
        for value in wrong:
            answer = server.predict(value)
            assert answer.status == 422 and answer.error, (value, answer.body)
        assert server.predict({"n": 65}).status == 413


@pytest.mark.slow
def test_pairs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from serve_exports import trained_on_texts

    folder = trained_on_texts(tmp_path, "data.text_pair=other")
    model: ExportedModel = load(folder)
    with serving(folder, log=tmp_path / "log") as server:
        pairs = [("the film", "was bright"), ("dull", "we saw it")]
        members = [{"text": text, "text_pair": other} for text, other in pairs]
        assert server.get("/model").json["kind"] == "text_pair"
        alike(server.predict({"inputs": members}).json["results"], model(pairs))
        alike(server.predict(members[0]).json["results"], model(pairs[:1]))
        assert "text_pair is missing" in server.predict({"text": "a"}).error
        assert server.predict({"inputs": ["a"]}).status == 422
        assert json.dumps(members)
