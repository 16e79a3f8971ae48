"""A server under load for a minute, and beyond what it can answer.

    OMP_NUM_THREADS=1 python -m benchmarks.serve_load outputs/bert/minilm/export/onnx [SECONDS]

Goals: no error at 32 clients; with a full queue only 200 and 429, and no more memory than before.
"""

import sys
from collections import Counter
from pathlib import Path

from benchmarks.result_file import surroundings, write_result
from benchmarks.serve_clients import Exchange, drive, questions, served

CLIENTS, TOO_MANY = 32, 400
MAX_QUEUE = 64
MAX_GROWTH_MIB = 64
MET = {True: "met", False: "missed"}


def row(name: str, exchanges: list[Exchange], seconds: float, before_mib: float, after_mib: float) -> str:
    """A line of the table."""
    statuses = Counter(exchange.status for exchange in exchanges)
    latencies = sorted(exchange.latency_s for exchange in exchanges if exchange.status == 200)
    quantiles = [1000 * latencies[int(q * (len(latencies) - 1))] for q in (0.5, 0.95, 0.99)]
    shown = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    times = " | ".join(f"{value:.1f}" for value in quantiles)
    return f"| {name} | {shown} | {statuses[200] / seconds:.0f} | {times} | {before_mib:.0f} | {after_mib:.0f} |"


def main() -> int:
    """Measure, print and write. Returns: exit code."""
    export, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    bodies = questions(2000)
    rows, met = [], True
    for name, clients, words in (
        (f"{CLIENTS} clients", CLIENTS, ()),
        (f"{TOO_MANY} clients, max_queue={MAX_QUEUE}", TOO_MANY, (f"max_queue={MAX_QUEUE}",)),
    ):
        with served(export, *words) as server:
            drive(server.port, bodies[:200], CLIENTS)
            before = server.rss_mib()
            exchanges = drive(server.port, bodies, clients, seconds)
            after = server.rss_mib()
        rows.append(row(name, exchanges, seconds, before, after))
        allowed = {200} if clients == CLIENTS else {200, 429}
        met = met and {exchange.status for exchange in exchanges} <= allowed and after < before + MAX_GROWTH_MIB
    lines = [
        f"# A server for {seconds:.0f} s under load",
        "",
        *surroundings("closed-loop clients on the same cores", "onnxruntime", "fastapi", "uvicorn"),
        "",
        "| load | answers by status | answered/s | p50 ms | p95 ms | p99 ms | MiB before | MiB after |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"- goals: 200 alone, under overload 429 too; memory within {MAX_GROWTH_MIB} MiB: {MET[met]}",
    ]
    write_result("serve-load", "\n".join(lines) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
