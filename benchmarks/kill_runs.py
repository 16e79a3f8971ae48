"""Runs that are killed at random moments and resumed by the same command, beside runs never killed.

    python -m benchmarks.kill_runs [minutes=20] [kills=3] [seed=0]

Each run is of a task, a number of ranks, a strategy and a way of saving that are drawn at random, and so are its kills:
SIGKILL to all of its processes within a step, a save or an evaluation, between epochs, while it starts and while it
finishes. Weights, optimizer state, random numbers, best checkpoint and metrics.jsonl without timings have to equal
those of the run never killed to the bit. After `minutes` no other run is begun. Writes a dated file under
benchmarks/results/ and exits with the number of runs that differ.
"""

from __future__ import annotations

import datetime
import random
import shlex
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from benchmarks.result_file import surroundings, write_result

# The harness is shared with the tests, of which the slow ones do a few of these runs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from kills import PHASES, STRATEGIES, Killed, Kind, Reference, draw_kills, killed_until_done, never_killed

SHARDED, BESIDE = "checkpoint.format=sharded", "checkpoint.asynchronous=true"
SAVINGS: tuple[tuple[str, ...], ...] = ((), (BESIDE,), (SHARDED,), (SHARDED, BESIDE))


def main() -> int:
    """Returns: the number of runs that differ."""
    options = {"minutes": "20", "kills": "3", "seed": "0"} | dict(word.split("=", 1) for word in sys.argv[1:])
    draw = random.Random(int(options["seed"]))
    end_s = time.monotonic() + 60 * float(options["minutes"])
    references: dict[Kind, Reference] = {}
    done: list[Killed] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        while time.monotonic() < end_s:
            kind = draw_kind(draw)
            if kind.never_killed not in references:
                folder = Path(place, f"never-{len(references)}")
                references[kind.never_killed] = never_killed(kind.never_killed, folder)
            reference = references[kind.never_killed]
            kills = draw_kills(draw, kind, reference, int(options["kills"]))
            killed = killed_until_done(kind, reference, Path(place, f"run-{len(done)}"), kills)
            done.append(killed)
            print(f"{kind}: killed {', '.join(killed.phases)}: {killed.differences or 'equal'}", flush=True)
    write_result("kill-runs", "\n".join(page(done, len(references))))
    return sum(bool(killed.differences) for killed in done)


def draw_kind(draw: random.Random) -> Kind:
    """A task, its ranks, how often it logs, and how it is saved."""
    task = draw.choice(list(STRATEGIES))
    strategy = draw.choice([None, *STRATEGIES[task]])
    # DeepSpeed's flattened shards are gathered in any case.
    savings = [s for s in SAVINGS if SHARDED not in s or strategy != "deepspeed_stage_2"]
    return Kind(task, strategy, draw.choice([1, 10]), draw.choice(savings))


def page(done: list[Killed], num_references: int) -> list[str]:
    """The result as Markdown."""
    rows: defaultdict[tuple[str, str, str], list[Killed]] = defaultdict(list)
    for killed in done:
        kind = killed.kind
        rows[kind.task, kind.strategy or "1 rank", " ".join(kind.saving)].append(killed)
    phases = Counter(phase for killed in done for phase in killed.phases)
    differing = [killed for killed in done if killed.differences]
    return [
        f"# Runs that were killed, {datetime.date.today()}",
        "",
        f"    python -m benchmarks.kill_runs {shlex.join(sys.argv[1:])}".rstrip(),
        "",
        f"{len(done)} runs of {num_references} kinds, {phases.total()} kills; "
        f"{len(differing)} runs differ from the run never killed.",
        "",
        "| task | ranks | saving | runs | kills | equal |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {task} | {ranks if ranks == '1 rank' else f'2, {ranks}'} | {saving or 'full, at once'} | {len(each)} "
            f"| {sum(len(killed.phases) for killed in each)} | {sum(not killed.differences for killed in each)} |"
            for (task, ranks, saving), each in sorted(rows.items())
        ),
        "",
        "| killed within | kills |",
        "| --- | --- |",
        *(f"| {phase} | {phases[phase]} |" for phase in PHASES),
        "",
        *(f"- differs: {killed.kind}: {', '.join(killed.differences[:5])}" for killed in differing),
        *surroundings("no GPU", "torch", "pytorch-lightning", "deepspeed"),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
