"""The page in a real browser: a conversation, an answer added by hand, a correction; and nothing asked elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from browser.webdriver import MISSING, Browser, headless_browser
from customer_application import served, train_quickly

from examples.customer_service.application import Application
from examples.customer_service.assistant import Assistant
from examples.customer_service.thresholds import Thresholds

LAST = "document.querySelector('#messages li:last-child')"


def ask(browser: Browser, question: str) -> str:
    """Type a question. Returns: the classes of the reply."""
    before = browser.run("return document.querySelectorAll('#messages .told').length")
    browser.run(f"byId('question').value = {json.dumps(question)}; byId('ask').requestSubmit()")
    browser.wait_for(f"return document.querySelectorAll('#messages .told').length === {before + 1}")
    browser.wait_for(f"return {LAST}.querySelector('.why') !== null")
    return browser.run(f"return {LAST}.className")


@pytest.mark.slow
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_conversation(tmp_path: Path) -> None:
    out = train_quickly(tmp_path / "app")
    replace(Application.read(out), thresholds=Thresholds(0.0, 0.97, 0.97)).write(out)
    assistant = Assistant(out, {})
    with served(assistant) as client, headless_browser(tmp_path) as browser:
        browser.open("about:blank")
        browser.requests()  # of the browser's own start page
        browser.open(client.url)
        browser.wait_for("return document.querySelectorAll('#answers tbody tr').length === 3")
        assert ask(browser, "please cancel order 48213") == "told intent"
        assert "about cancel_order: 48213" in browser.run(f"return {LAST}.textContent")
        assert ask(browser, "cancel <b>my</b> order") == "told intent"
        assert browser.run(f"return {LAST}.querySelector('.slot').textContent") == "order number"
        assert browser.run("return document.querySelectorAll('#messages b, #log b').length") == 0

        browser.run("show('answers'); byId('intent').value = 'vouchers'; byId('answer').value = 'In every shop.'")
        browser.run("byId('questions').value = 'do you sell vouchers'; byId('edit').requestSubmit()")
        browser.wait_for("return byId('saved').value", "Saved")
        assert ask(browser, "do you sell vouchers") == "told retrieval"
        assert "In every shop." in browser.run(f"return {LAST}.textContent")
        browser.run("byId('answer').value = 'No.'; byId('edit').requestSubmit()")
        browser.wait_for("return byId('answers').textContent.includes('No.')")
        browser.run("byId('remove').click()")
        browser.wait_for("return byId('saved').value", "Deleted")

        browser.run("show('log')")
        browser.run("const menu = document.querySelector('#log select'); menu.value = 'track_order';"
                    " menu.dispatchEvent(new Event('change'))")  # fmt: skip
        browser.wait_for("return call('GET', 'log').then((rows) => rows[0].correction)", "track_order")
        assert browser.errors() == []
        asked = browser.requests()
        assert f"{client.url}/answer" in asked
        assert [url for url in asked if not url.startswith(client.url)] == []
