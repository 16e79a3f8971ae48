"""A client of chromedriver: the W3C WebDriver protocol is JSON over HTTP, and Debian's chromium brings the server."""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MISSING = next((f"{name} is not installed" for name in ("chromium", "chromedriver") if not shutil.which(name)), None)
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1440,1200",
]  # fmt: skip
DEADLINE_S = 60.0


class Browser:
    """One window of a headless chromium."""

    def __init__(self, driver_url: str, profile: Path) -> None:
        options = {"binary": shutil.which("chromium"), "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.session = driver_url
        created = self._post("/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.session = f"{driver_url}/session/{created['sessionId']}"

    def open(self, url: str) -> None:
        """Load a page; returns after its load event."""
        self._post("/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value of a script's return statement in the page."""
        return self._post("/execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str, wanted: Any = True) -> None:
        """Run a script until it returns what is wanted."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.run(script)) != wanted:
            assert time.monotonic() < deadline, f"{script}: {found!r} instead of {wanted!r}"
            time.sleep(0.05)

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._post("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def errors(self) -> list[str]:
        """What the console has shown as an error since the last call."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Addresses that the browser has asked for since the last call, other than those within the page itself."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def close(self) -> None:
        """End the browser."""
        self._call(urllib.request.Request(self.session, method="DELETE"))

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return self._post("/se/log", {"type": kind})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.session + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return self._call(request)

    def _call(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=2 * DEADLINE_S) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error


@contextmanager
def headless_browser(directory: Path) -> Iterator[Browser]:
    """A browser with a profile of its own below a directory."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        browser = Browser(f"http://127.0.0.1:{port}", directory / "profile")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait()
