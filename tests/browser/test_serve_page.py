"""The page of a server in a real browser: an image, a sentence and noise go in, results come out."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser.webdriver import MISSING, Browser, headless_browser
from PIL import Image
from served import TRAINED, exported_run, served

from trainer.export import load
from trainer.export.processing import NoiseInputs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

ANSWER = "return document.getElementById('answer').textContent"
HAS_RESULT = "return !document.getElementById('result').hidden"
ERROR = "const error = document.getElementById('error'); return error.hidden ? '' : error.textContent"
BARS = "return [...document.querySelectorAll('#bars .name')].map((one) => one.textContent)"
VALUES = "return [...document.querySelectorAll('#bars .value:not(.hint)')].map((one) => one.textContent)"
IMAGES = "return [...document.querySelectorAll('#grid img')].map((one) => one.src)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with headless_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An exported run of each task."""
    folder = tmp_path_factory.mktemp("runs")
    return {task: exported_run(task, folder) for task in TRAINED}


def open_page(browser: Browser, url: str) -> None:
    browser.open("about:blank")
    browser.errors()
    browser.requests()
    browser.open(url)
    browser.wait_for("return Boolean(document.body.dataset.kind)")


def assert_clean(browser: Browser, url: str) -> None:
    """No error in the console, and no request to anywhere else."""
    assert browser.errors() == []
    asked = browser.requests()
    assert asked and [address for address in asked if not address.startswith(f"{url}/")] == []


def drop(browser: Browser, file: Path) -> None:
    """Drop a file on the page, as a mouse does."""
    content = list(file.read_bytes())
    browser.run(
        f"const data = new DataTransfer(); data.items.add(new File([new Uint8Array({content})], '{file.name}'));"
        "for (const name of ['dragenter', 'dragover', 'drop']) document.getElementById('drop').dispatchEvent("
        "new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true}))"
    )


def pixels(sources: list[str]) -> np.ndarray:
    """Images of data: addresses, (N, H, W) int."""
    files = [io.BytesIO(base64.b64decode(source.partition(",")[2])) for source in sources]
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)


def assert_results(browser: Browser, expected: dict[str, Any]) -> None:
    """Label and bars are those of the export, the largest first."""
    browser.wait_for(ANSWER, expected["label"])
    shares = sorted(expected["probabilities"].items(), key=lambda item: -item[1])[:10]
    assert browser.run(BARS) == [name for name, _ in shares]
    assert browser.run(VALUES) == [f"{100 * share:.1f} %" for _, share in shares]
    assert "ms on the server" in browser.run("return document.getElementById('latency').textContent")


def test_an_image_dropped_or_chosen_gives_its_class(browser: Browser, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["cnn"]
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    first, second = load(run / "export" / "onnx")(images)
    with served(run) as url:
        open_page(browser, url)
        drop(browser, tmp_path / "0.png")
        assert_results(browser, first)
        browser.run("document.getElementById('bars').replaceChildren()")
        document = browser.command("DOM.getDocument")["root"]["nodeId"]
        field = browser.command("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
        browser.command("DOM.setFileInputFiles", nodeId=field, files=[str(tmp_path / "1.png")])
        browser.wait_for("return document.querySelectorAll('#bars .name').length", 10)
        assert_results(browser, second)
        assert_clean(browser, url)
        drop(browser, tmp_path / "broken.png")
        browser.wait_for("return !document.getElementById('error').hidden")
        assert "image" in browser.run(ERROR)
        assert browser.run(HAS_RESULT) is False


def test_a_sentence_typed_gives_its_label(browser: Browser, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["bert"]
    text = 'where is my "order"?'
    (expected,) = load(run / "export" / "onnx")(text)
    with served(run) as url:
        open_page(browser, url)
        # By keyboard alone: the field has the focus, and Ctrl+Enter sends.
        browser.command("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 2}
        for kind in ("rawKeyDown", "keyUp"):
            browser.command("Input.dispatchKeyEvent", type=kind, **key)
        assert_results(browser, expected)
        body = json.dumps({"text": text}, separators=(",", ":"))
        assert f"-d '{body}'" in browser.run("return document.getElementById('curl').textContent")
        assert_clean(browser, url)
        browser.run("document.getElementById('text').value = ''; document.getElementById('send').click()")
        browser.wait_for("return !document.getElementById('error').hidden")
        assert "text" in browser.run(ERROR)
    browser.errors()
    browser.run("document.getElementById('text').value = 'a'; document.getElementById('send').click()")
    browser.wait_for(ERROR, "The server cannot be reached.")


def test_samples_follow_the_sliders(browser: Browser, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["dcgan"]
    with served(run) as url:
        open_page(browser, url)
        count = "return document.querySelectorAll('#grid img').length"
        browser.wait_for(count, 16)
        first = browser.run(IMAGES)

        def slide(name: str, value: int) -> None:
            browser.run(
                f"const slider = document.getElementById('{name}'); slider.value = {value};"
                "slider.dispatchEvent(new Event('input'))"
            )

        slide("n", 3)
        browser.wait_for(count, 3)
        assert np.abs(pixels(browser.run(IMAGES)) - pixels(first[:3])).max() <= 1, "the same seed"
        slide("seed", 7)
        browser.wait_for(f"{IMAGES.replace('return ', 'const shown = ')}; return shown[0] !== '{first[0]}'")
        model = load(run / "export" / "onnx")
        assert isinstance(model.processing.inputs, NoiseInputs)
        expected = [
            f"data:image/png;base64,{each['png_base64']}" for each in model(model.processing.inputs.points(3, 7))
        ]
        assert np.abs(pixels(browser.run(IMAGES)) - pixels(expected)).max() <= 1, "rounding may differ between batches"
        slide("seed", 0)
        browser.wait_for(f"{IMAGES.replace('return ', 'const shown = ')}; return shown[0] === '{first[0]}'")
        assert_clean(browser, url)


def test_a_key_is_asked_for_where_the_server_has_one(browser: Browser, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["dcgan"]
    (tmp_path / "key.txt").write_text("a key")
    with served(run, f"api_key_file={tmp_path / 'key.txt'}") as url:
        open_page(browser, url)
        browser.wait_for("return document.activeElement.id", "key")
        browser.wait_for(ERROR, "a valid key is needed, in the header Authorization: Bearer KEY")
        browser.run("document.getElementById('key').value = 'a key'; document.getElementById('form').requestSubmit()")
        browser.wait_for("return document.querySelectorAll('#grid img').length", 16)


def test_the_page_follows_light_and_dark(browser: Browser, runs: dict[str, Path], tmp_path: Path) -> None:
    look = (
        "const {color, backgroundColor} = getComputedStyle(document.documentElement); return [color, backgroundColor]"
    )
    with served(runs["dcgan"]) as url:
        open_page(browser, url)
        looks = []
        for scheme in ("light", "dark"):
            browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            looks.append(browser.run(look))
        browser.command("Emulation.setEmulatedMedia", features=[])
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]
