"""Throughput of a server with dynamic batches, and of one that computes every input alone.

    python -m trainer task=bert model=minilm run.name=minilm
    python -m trainer export run=outputs/bert/minilm format=onnx,onnx_int8
    python -m benchmarks.serve_batching outputs/bert/minilm/export/onnx_int8 800

The last word is the number of requests in a round. Goal: at least twice the throughput for a BERT, at 32 clients. Both
servers run; only the one that is measured has work.
"""

import math
import sys
import time
from pathlib import Path

from benchmarks.result_file import write_comparison_result
from benchmarks.serve_clients import Served, drive, questions, served
from trainer.bench.compare import compare
from trainer.bench.comparison import Question
from trainer.bench.rounds import Sample

CLIENTS, ROUNDS = 32, 15
ALONE, BATCHES = "max_batch=1", "max_batch=32"


def sample(server: Served, bodies: list[bytes]) -> Sample:
    """All bodies from all clients; a unit of work is a request."""
    start = time.perf_counter()
    exchanges = drive(server.port, bodies, CLIENTS)
    elapsed_s = time.perf_counter() - start
    if any(exchange.status != 200 for exchange in exchanges):
        raise SystemExit(f"not all answered: {sorted({exchange.status for exchange in exchanges})}")
    sure = math.fsum(exchange.answer["results"][0]["probability"] for exchange in exchanges)
    latencies = sorted(exchange.latency_s for exchange in exchanges)
    figures = {"requests/s": len(bodies) / elapsed_s, "p50 ms": 1000 * latencies[len(latencies) // 2]}
    figures["p99 ms"] = 1000 * latencies[int(0.99 * len(latencies))]
    return Sample(elapsed_s / len(bodies), {"sum of probabilities": sure}, figures=figures)


def main() -> int:
    """Measure, print and write. Returns: exit code."""
    export, bodies = Path(sys.argv[1]), questions(int(sys.argv[2]))
    name = export.parents[1].name
    question = Question(
        "serve batching",
        f"serving the run {name} in the format {export.name} with and without batches, {CLIENTS} clients",
        "request",
        "wall time",
        "sum of the probabilities of all answers",
        1e-4,
    )
    with served(export, ALONE) as alone, served(export, BATCHES) as batches:
        sides = {ALONE: lambda: sample(alone, bodies), BATCHES: lambda: sample(batches, bodies)}
        comparison = compare(question, sides, ROUNDS, f"python -m benchmarks.serve_batching EXPORT {len(bodies)}")
    return write_comparison_result(f"serve-batching-{name}-{export.name}", comparison, {BATCHES: 0.5})


if __name__ == "__main__":
    sys.exit(main())
