"""The page in a real browser: no error, no request, what can be clicked, and points that arrive while it is open."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser.run_directories import append_line, metrics_line, write_run
from browser.webdriver import MISSING, Browser, headless_browser
from conftest import REPOSITORY
from PIL import Image

from trainer.report.page import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

EVIL = "<img src=x onerror=boom()>$$x$$"
ALL_DRAWN = "return Number(document.documentElement.dataset.charts) === document.querySelectorAll('.plot').length"
VISIBLE = "return charts.map((chart) => chart.view.model.renderers.filter((one) => one.visible).length)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with headless_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def evil_run(tmp_path: Path) -> Path:
    """A run with something in every section, and markup wherever text from a file is shown."""
    run = write_run(tmp_path / EVIL, num_points=5000, config={"note": EVIL}, data={"source": EVIL})
    append_line(run, step=5000, **{f"train/{EVIL}": 1.0, "test/loss": 0.1, "perf/peak_memory_gib": 3.0})
    for rank in range(3):
        append_line(run, step=5000, **{f"perf/step_time_s_rank_{rank}": 0.1})
    (run / "samples").mkdir()
    for step in (0, 10, 20):
        Image.new("L", (32, 32), step).save(run / "samples" / f"step-{step:08d}.png")
    (run / "predictions.csv").write_text(f"text,label\n{EVIL},greeting\n")
    return run


def open_drawn(browser: Browser, url: str) -> None:
    browser.open("about:blank")
    browser.errors()
    browser.requests()
    browser.open(url)
    browser.wait_for(ALL_DRAWN)


def assert_clean(browser: Browser) -> None:
    assert browser.errors() == []
    assert browser.run("return document.documentElement.dataset.errors") == "0"


def test_the_page_has_no_error_and_makes_no_request(browser: Browser, evil_run: Path) -> None:
    write_report([evil_run], evil_run / "report.html")
    url = (evil_run / "report.html").as_uri()
    open_drawn(browser, url)
    assert_clean(browser)
    assert [request for request in browser.requests() if request != url] == []
    assert browser.run("return document.querySelector('h1').textContent") == EVIL
    assert browser.run("return document.querySelectorAll('img[src=x]').length") == 0
    assert browser.run("return document.querySelectorAll('.plot').length") >= 10


def test_an_error_in_the_page_is_noticed(browser: Browser, tmp_path: Path) -> None:
    """What the test above relies on."""
    run = write_run(tmp_path / "run")
    page = tmp_path / "page.html"
    write_report([run], page)
    planted = "<script>new Image().src = 'http://127.0.0.1:9/x.png'; boom()</script></body>"
    page.write_text(page.read_text().replace("</body>", planted))
    open_drawn(browser, page.as_uri())
    # The policy of the page refuses the request, which is an error as well.
    assert int(browser.run("return document.documentElement.dataset.errors")) >= 2
    assert len(browser.errors()) >= 2
    assert "http://127.0.0.1:9/x.png" in browser.requests()


def test_series_can_be_chosen_and_read(browser: Browser, evil_run: Path) -> None:
    write_report([evil_run], evil_run / "report.html")
    open_drawn(browser, (evil_run / "report.html").as_uri())
    before = browser.run(VISIBLE)
    browser.run("document.querySelector('button[data-part=val]').click()")
    after = browser.run(VISIBLE)
    assert sum(after) < sum(before)
    browser.run("document.querySelector('button[data-part=val]').click()")
    assert browser.run(VISIBLE) == before

    shown = browser.run(
        "const loss = charts[0], source = loss.view.model.renderers[0].data_source;"
        "return tip(loss, source, {name: '0', index: 0}).textContent"
    )
    assert shown.startswith("train") and shown.endswith("at step 1")

    browser.run(
        "const slider = document.querySelector('.album input'); slider.value = 0;"
        "slider.dispatchEvent(new Event('input'))"
    )
    assert browser.run("return document.querySelector('.album output').textContent") == "step 0"
    assert browser.run("return [...document.querySelectorAll('.album img')].map((one) => one.hidden)") == [
        False, True, True,
    ]  # fmt: skip
    assert_clean(browser)


def test_the_page_follows_light_and_dark(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report([run], run / "report.html")
    look = (
        "return [getComputedStyle(document.body).backgroundColor, charts[0].view.model.left[0].major_label_text_color]"
    )
    looks = {}
    for scheme in ("light", "dark"):
        browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        open_drawn(browser, (run / "report.html").as_uri())
        looks[scheme] = browser.run(look)
    assert looks["light"][0] != looks["dark"][0]
    assert looks["light"][1] != looks["dark"][1]
    # It also follows while it is open.
    browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.wait_for(look, looks["light"])
    assert_clean(browser)


def test_charts_are_printed_as_pictures_of_the_width_of_the_paper(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report([run], run / "report.html")
    open_drawn(browser, (run / "report.html").as_uri())
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    browser.wait_for(
        "const pictures = [...document.querySelectorAll('.plot > img')];"
        "return pictures.length === charts.length && pictures.every((one) => one.naturalWidth > 100)"
    )
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run("return document.querySelectorAll('.plot > img').length") == 0
    assert_clean(browser)


def test_compared_runs_can_be_hidden_and_sorted(browser: Browser, tmp_path: Path) -> None:
    lr = {"optimizer": {"name": "adam", "lr": 0.1}}
    runs = [write_run(tmp_path / "a", scale=2.0), write_run(tmp_path / "b", config=lr), write_run(tmp_path / "c")]
    write_report(runs, tmp_path / "page.html")
    open_drawn(browser, (tmp_path / "page.html").as_uri())
    before = sum(browser.run(VISIBLE))
    browser.run("document.querySelector('button[data-run=\"1\"]').click()")
    assert 0 < sum(browser.run(VISIBLE)) < before
    names = "return [...document.querySelectorAll('#runs tbody tr')].map((row) => row.cells[0].textContent.trim())"
    browser.run("[...document.querySelectorAll('#runs th')].find((one) => one.textContent === 'train loss').click()")
    assert browser.run(names)[-1] == "a"
    browser.run("[...document.querySelectorAll('#runs th')].find((one) => one.textContent === 'train loss').click()")
    assert browser.run(names)[0] == "a"
    assert browser.run(
        "return [...document.querySelectorAll('tr.differs')].map((row) => row.cells[0].textContent)"
    ) == ["optimizer.lr"]
    assert_clean(browser)


# ---- the live server


@contextmanager
def live_server(root: Path) -> Iterator[str]:
    """The verb as a user types it. Yields: its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "report", "--serve", f"root={root}"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "outputs"
    write_run(root / "cnn" / "first", scale=2.0)
    write_run(root / "cnn" / "second", status="running")
    (write_run(root / "bert" / EVIL) / "run.json").write_text("{")
    return root


def names_shown(browser: Browser) -> list[str]:
    return browser.run(
        "return [...document.querySelectorAll('#runs tbody tr')].filter((row) => !row.hidden)"
        ".map((row) => row.cells[1].textContent)"
    )


def test_the_table_of_runs(browser: Browser, root: Path) -> None:
    with live_server(root) as url:
        browser.open("about:blank")
        browser.errors()
        browser.requests()
        browser.open(url)
        browser.wait_for("return document.querySelectorAll('#runs tbody tr').length", 3)
        assert set(names_shown(browser)) == {"cnn/first", "cnn/second", f"bert/{EVIL}"}
        assert browser.run("return document.querySelector('.status.damaged').title").endswith("(no readable run.json)")
        browser.run("filter.value = 'cnn running'; filter.dispatchEvent(new Event('input'))")
        assert names_shown(browser) == ["cnn/second"]
        browser.run("filter.value = ''; filter.dispatchEvent(new Event('input'))")
        browser.run("[...document.querySelectorAll('#runs th')].find((one) => one.textContent === 'run').click()")
        assert names_shown(browser) == sorted(names_shown(browser))
        write_run(root / "cnn" / "third")
        browser.wait_for("return document.querySelectorAll('#runs tbody tr').length", 4)

        for name in ("cnn/first", "cnn/third"):
            browser.run(f"document.querySelector('input[aria-label=\"choose {name}\"]').click()")
        browser.run("document.getElementById('compare').click()")
        browser.wait_for("return document.querySelector('h1')?.textContent", "2 runs compared")
        browser.wait_for(ALL_DRAWN)
        assert_clean(browser)
        assert all(request.startswith(url) for request in browser.requests() if request != "about:blank")


def test_a_new_point_appears_in_an_open_page(browser: Browser, root: Path) -> None:
    run = root / "cnn" / "second"
    with live_server(root) as url:
        open_drawn(browser, f"{url}report?run=cnn/second")
        browser.wait_for("return document.documentElement.dataset.step", "100")
        append_line(run, **metrics_line(101))
        browser.wait_for("return document.documentElement.dataset.step", "101")
        steps = browser.run("return [...charts[0].view.model.renderers[0].data_source.data.x]")
        assert (len(steps), steps[-1]) == (101, 101)
        # A metric that is new needs a chart that is new.
        before = browser.run("return charts.length")
        append_line(run, step=101, **{"test/new": 1.0})
        browser.wait_for("return charts.length", before + 1)
        assert_clean(browser)
