"""`serve` as a user starts it, and its page in a real browser."""

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from browser.webdriver import MISSING, headless_browser

from examples.recommendation.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]
ROWS = "return document.querySelectorAll('#list > li').length"


def test_a_history_gives_a_list_with_reasons(tmp_path: Path) -> None:
    assert main(["train", f"out={tmp_path / 'out'}", "trainer.max_steps=12", "trainer.accelerator=cpu"]) == 0
    words = [sys.executable, "-m", "examples.recommendation", "serve", f"out={tmp_path / 'out'}", "port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as serving:
        assert serving.stdout is not None
        try:
            url = serving.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            with headless_browser(tmp_path) as browser:
                browser.open("about:blank")
                browser.requests()
                browser.open(url)
                browser.wait_for("return document.getElementById('status').textContent.includes('400 items')")
                browser.run("document.getElementById('user').click()")
                browser.wait_for(ROWS, 10)
                assert browser.run(
                    "return [...document.querySelectorAll('#list > li')].every(x => x.querySelector('ul li'))"
                )
                first = browser.run("return document.querySelector('#list > li > span:nth-of-type(2)').textContent")
                browser.run("document.getElementById('clear').click()")
                browser.wait_for(ROWS, 0)
                browser.run(
                    "const text = document.getElementById('text'); text.value = 'cooking soups';"
                    "text.dispatchEvent(new Event('input'))"
                )
                browser.wait_for("return document.querySelectorAll('#found button').length > 0")
                browser.run("document.querySelector('#found button').click()")
                browser.wait_for(ROWS, 10)
                assert browser.run("return document.querySelectorAll('#history li').length") == 1
                assert first
                assert browser.errors() == []
                assert {each.split("/")[2] for each in browser.requests()} == {url.removeprefix("http://")}
                picture = base64.b64decode(browser.command("Page.captureScreenshot", format="png")["data"])
                assert picture.startswith(b"\x89PNG")
        finally:
            serving.send_signal(signal.SIGINT)
    assert serving.returncode == 0
