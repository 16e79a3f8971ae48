"""bench serve: a server of predictions under load, at rates that rise until it is saturated."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from trainer.bench.compare import surroundings
from trainer.bench.load import Offered, check, offer
from trainer.bench.load_result import print_load, write_load
from trainer.bench.saturation import find_saturation, measure_rates
from trainer.errors import EXIT_DONE, UserError
from trainer.run.opening import open_stored_run
from trainer.serve.config import KEY_VARIABLE
from trainer.verbs.bench.load_requests import described, requests_of
from trainer.verbs.bench.words import number, out_of, take_own

OWN = {"url": "", "run": "", "inputs": "", "rates": "", "seconds": "10", "timeout": "10", "out": ""}


def serve(words: Sequence[str]) -> int:
    """`bench serve WORDS`. Returns: exit code. Raises: UserError."""
    own, others = take_own("serve", words, OWN)
    seconds, timeout_s = number("seconds", own["seconds"], 1), number("timeout", own["timeout"], 1)
    rates = [number("rates", text, 1) for text in own["rates"].split(",") if text]
    if own["run"]:
        open_stored_run(Path(own["run"]))
    elif not own["url"]:
        raise UserError("bench serve: needs url=http://HOST:PORT of a server, or run=DIR of a run to serve")
    if own["url"] and others:
        raise UserError(f"{others[0]}: bench serve passes it to a server that it starts; with url= it has no effect")
    key = os.environ.get(KEY_VARIABLE)
    facts = surroundings(f"python -m trainer bench serve {shlex.join(words)}")
    with _server(own["url"], own["run"], others) as url:
        model = described(url, key)
        requests = requests_of(model, own["inputs"], own["run"])
        answers_per_s = check(url, requests, timeout_s, key)
        console = Console()

        def measure(rate_per_s: float) -> Offered:
            row = offer(url, requests, rate_per_s, seconds, timeout_s, key)
            verdict = "" if row.is_sustained else "  not sustained"
            line = f"{rate_per_s:8.4g} a s  answered {row.answered}/{row.sent}  p99 {row.p99_ms:.1f} ms{verdict}"
            console.print(line, highlight=False)
            return row

        # One request after the other is at most what a server without batches sustains.
        result = measure_rates(measure, rates) if rates else find_saturation(measure, answers_per_s / 2)
    out = out_of(own, f"serve-{model['task']}-{model['format']}")
    write_load(result, {**facts, "model": model}, out)
    print_load(result, out)
    return EXIT_DONE


@contextmanager
def _server(url: str, run: str, words: Sequence[str]) -> Iterator[str]:
    """The address of the server; of one that is started for this benchmark where none is given."""
    if url:
        yield url.rstrip("/")
        return
    command = [sys.executable, "-m", "trainer", "serve", f"run={run}", "port=0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next((match for line in process.stdout if (match := re.search(r"http://\S+:\d+", line))), None)
            if found is None:
                raise UserError(f"run={run}: the server has not started; its message is above")
            yield found[0]
        finally:
            process.terminate()
