"""How long a page for 20 runs of 10,000 points takes to write and to open.

PYTHONPATH=tests python -m benchmarks.report_page
"""

import sys
import tempfile
import time
from pathlib import Path

from browser.run_directories import write_run
from browser.webdriver import Browser, headless_browser

from trainer.report.page import write_report

NUM_RUNS, NUM_POINTS, NUM_ROUNDS = 20, 10_000, 7


def cpu_s(browser: Browser) -> float:
    """CPU time of the main thread of the page's process, which a busy machine lengthens less than wall time."""
    metrics = browser.command("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")


def main() -> None:
    """Write the page, open it several times and print the medians."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        runs = [write_run(directory / f"run-{n:02d}", NUM_POINTS, 1 + n / 10) for n in range(NUM_RUNS)]
        page = directory / "page.html"
        start = time.perf_counter()
        write_report(runs, page)
        print(f"written in {time.perf_counter() - start:.2f} s, {page.stat().st_size / 2**20:.1f} MiB")
        first, drawn, used = [], [], []
        with headless_browser(directory) as browser:
            for _ in range(NUM_ROUNDS):
                # A page from another site gets a new process, whose CPU time starts at 0.
                browser.open("about:blank")
                browser.command("Performance.enable", timeDomain="threadTicks")
                browser.open(page.as_uri())
                browser.wait_for("return document.documentElement.dataset.drawnMs !== undefined")
                first.append(float(browser.run("return document.documentElement.dataset.firstMs")) / 1000)
                drawn.append(float(browser.run("return document.documentElement.dataset.drawnMs")) / 1000)
                used.append(cpu_s(browser))
            assert browser.run("return document.documentElement.dataset.errors") == "0"
        rows = {"charts in the window drawn": first, "all charts drawn": drawn, "CPU time of the page": used}
        for name, times in rows.items():
            ordered = sorted(times)
            print(f"{name}: median {ordered[len(ordered) // 2]:.2f} s, {ordered[0]:.2f} to {ordered[-1]:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
