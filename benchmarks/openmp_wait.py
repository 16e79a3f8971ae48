"""OpenMP threads that sleep while they wait, against libgomp's default of spinning: `python -m benchmarks.openmp_wait`.

Both sides train the same short run in new processes, on the machine as it is and with every core kept busy by another
process. The weights of all runs are compared. About 8 minutes on 2 cores; two dated files.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.result_file import write_comparison_result
from trainer.bench.compare import compare
from trainer.bench.comparison import Question
from trainer.bench.process import run_process
from trainer.bench.rounds import FEWEST_ROUNDS, Sample

SIDES: Mapping[str, Mapping[str, str]] = {
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    # libgomp's default where OMP_WAIT_POLICY is not set (GOMP_SPINCOUNT in its manual); it overrides the policy.
    "spinning": {"GOMP_SPINCOUNT": "300000"},
}
WORDS = ("task=cnn", "trainer.max_steps=100", "logger=none", "trainer.accelerator=cpu", "run.name=run")


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keep `count` cores busy with processes of their own, which end with this one, however it ends."""
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def train(environment: Mapping[str, str]) -> Sample:
    """One run. Returns: its wall time with start-up, and its weights as a number."""
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        done = run_process([sys.executable, "-m", "trainer", *WORDS, f"run.root={folder}"], environment)
        wall_s = time.perf_counter() - start_s
        if done.code:
            raise RuntimeError(f"training ended with {done.code}\n{done.stderr}")
        weights = Path(folder, "cnn", "run", "model.safetensors").read_bytes()
    digest = int.from_bytes(hashlib.sha256(weights).digest()[:6])
    return Sample(wall_s, {"SHA-256 of the weights": digest}, figures={"CPU seconds": done.cpu_s})


def main() -> int:
    """Measure and write both results. Returns: 0 when all weights are equal."""
    for name in [name for name in os.environ if name.startswith(("OMP_", "GOMP_"))]:
        del os.environ[name]
    sides: Mapping[str, Callable[[], Sample]] = {name: partial(train, variables) for name, variables in SIDES.items()}
    codes = []
    for name, busy in (("quiet", 0), ("busy", os.cpu_count() or 1)):
        question = Question(
            f"openmp_wait, {busy} other busy processes", " ".join(WORDS[:2]), "run", "wall time", "weights", 0.0
        )
        with busy_cores(busy):
            comparison = compare(question, sides, FEWEST_ROUNDS, "python -m benchmarks.openmp_wait")
        codes.append(write_comparison_result(f"openmp-wait-{name}", comparison, {}))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
