"""What examples/customer_service does on its test set, and how long an answer takes under load.

    python -m benchmarks.customer_service out=FOLDER [out_of_scope=FILE|DIR] [clients=8] [num_requests=2000]

The service is a process of its own; each client sends the next question when it has the answer to the last one.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.result_file import surroundings, write_result
from examples.customer_service.application import Application, split_file
from examples.customer_service.data import read_csv
from examples.customer_service.evaluate import evaluate
from examples.customer_service.options import OUT, EvaluateOptions, parse

COMMAND = "python -m benchmarks.customer_service"
WARM_UP = 50  # requests before the clock starts


@dataclass(frozen=True)
class BenchmarkOptions:
    """out: folder of the application. out_of_scope: as for its verb evaluate. clients: that ask at the same time."""

    out: str = OUT
    out_of_scope: str = ""
    clients: int = 8
    num_requests: int = 2000


@contextmanager
def service(out: str) -> Iterator[str]:
    """The address of a service that runs in a process of its own."""
    command = [sys.executable, "-m", "examples.customer_service", "serve", f"out={out}", "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield urlsplit(process.stdout.readline().strip()).netloc
        finally:
            process.terminate()


def latencies(address: str, questions: Sequence[str], clients: int) -> tuple[np.ndarray, float]:
    """Seconds of each answer, and of all together, with so many clients at a time."""

    def ask(share: Sequence[str]) -> list[float]:
        """Seconds of each answer to one client."""
        connection = http.client.HTTPConnection(address)
        taken = []
        for question in share:
            start = time.perf_counter()
            body = json.dumps({"question": question})
            connection.request("POST", "/answer", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            taken.append(time.perf_counter() - start)
        return taken

    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        taken = list(pool.map(ask, [questions[number::clients] for number in range(clients)]))
        return np.array(list(itertools.chain(*taken))), time.perf_counter() - start


def measure(options: BenchmarkOptions) -> str:
    """The result as Markdown."""
    load = os.getloadavg()[0]  # of other work, before the measurement adds its own
    application = Application.read(Path(options.out))
    evaluation = evaluate(EvaluateOptions(options.out, options.out_of_scope))
    questions = [row.question for row in read_csv(split_file(Path(options.out), "test"))]
    with service(options.out) as address:
        latencies(address, questions[:WARM_UP], options.clients)
        asked = list(itertools.islice(itertools.cycle(questions), options.num_requests))
        taken, total_s = latencies(address, asked, options.clients)
    p50, p95, p99 = np.percentile(1000 * taken, [50, 95, 99])
    trained = application.options
    source = Path(trained.data).name
    outside = (
        "/".join(Path(options.out_of_scope).parts[-2:]) if options.out_of_scope else "held-back intents of the same set"
    )
    matcher = "no" if application.matcher_run is None else "yes"
    lines = [
        f"# Customer service on {source}",
        "",
        f"- Command: `{COMMAND} out=FOLDER clients={options.clients} num_requests={options.num_requests}`",
        f"- Trained with data={source} model={trained.model} precision={trained.precision}; matcher in use: {matcher}",
        f"- Out of scope: {outside}",
        *surroundings(f"clients on the same machine, load average {load:.1f}", "torch", "transformers", "scikit-learn"),
        "",
        evaluation.table(),
        f"| latency with {options.clients} clients: median, p95, p99, in ms | {p50:.0f}, {p95:.0f}, {p99:.0f} |",
        f"| answers a second | {len(taken) / total_s:.0f} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    chosen, _ = parse(sys.argv[1:], BenchmarkOptions)
    write_result(f"customer-service-{Path(Application.read(Path(chosen.out)).options.data).stem}", measure(chosen))
