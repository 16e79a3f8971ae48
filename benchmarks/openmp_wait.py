"""OpenMP threads that sleep while they wait, against libgomp's default of spinning: `python -m benchmarks.openmp_wait`.

Both sides train the same short runs, in turns, on a quiet machine and with every core kept busy by another process.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.result_file import surroundings, write_result

# libgomp's default where OMP_WAIT_POLICY is not set (GOMP_SPINCOUNT in its manual); it overrides the policy.
SPINNING = {"GOMP_SPINCOUNT": "300000"}
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}
TASKS = {
    "cnn": ["task=cnn", "trainer.max_epochs=3"],
    "bert": ["task=bert", "trainer.max_steps=40"],
    "dcgan": ["task=dcgan", "trainer.max_steps=30"],
}
ROUNDS = 7


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keep `count` cores busy with processes of their own."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def train(words: list[str], environment: Mapping[str, str]) -> tuple[float, str]:
    """One run in a new directory. Returns: wall time in seconds with start-up, and the SHA-256 of its weights."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    inherited["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "trainer", *words, "logger=none", "trainer.accelerator=cpu"]
        subprocess.run(command, cwd=folder, env={**inherited, **environment}, check=True, capture_output=True)
        wall_s = time.perf_counter() - start
        (weights,) = Path(folder).glob("outputs/*/*/model.safetensors")
        return wall_s, hashlib.sha256(weights.read_bytes()).hexdigest()


def measure(words: list[str]) -> str:
    """A row of the table: medians of both sides, their ratio, and the sleeping side against itself."""
    spinning, sleeping, again, weights = [], [], [], set()
    for number in range(ROUNDS):
        sides = [(spinning, SPINNING), (sleeping, SLEEPING), (again, SLEEPING)]
        for times, environment in sides if number % 2 else reversed(sides):
            wall_s, digest = train(words, environment)
            times.append(wall_s)
            weights.add(digest)
    assert len(weights) == 1, "the two sides trained different weights"
    ratio, noise = median(spinning) / median(sleeping), median(again) / median(sleeping)
    return f"{median(spinning):.1f} | {median(sleeping):.1f} | {ratio:.2f} | {noise:.2f} |"


def main() -> None:
    """Measure all tasks and write the result."""
    cores = os.cpu_count() or 1
    rows = []
    for name, words in TASKS.items():
        for busy in (0, cores):
            with busy_cores(busy):
                rows.append(f"| {name} | {busy} | {measure(words)}")
                print(rows[-1], flush=True)
    table = [
        "# Waiting OpenMP threads: spinning (libgomp's default) or asleep (ours)",
        "",
        "    python -m benchmarks.openmp_wait",
        "",
        f"Short runs with start-up, {ROUNDS} rounds in turns; the weights of all runs of a row are equal.",
        "",
        "| task | other busy processes | spinning, s | asleep, s | spinning/asleep | asleep/asleep |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        *surroundings("all cores", "torch"),
        "",
    ]
    write_result("openmp-wait", "\n".join(table))


if __name__ == "__main__":
    main()
