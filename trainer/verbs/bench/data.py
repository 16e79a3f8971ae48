"""bench data: the task's batches against torch's DataLoader, which collates them sample by sample."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from trainer.bench.compare import compare, print_comparison, write_comparison
from trainer.bench.comparison import Question
from trainer.errors import EXIT_DONE
from trainer.verbs.bench.table import BENCHMARKS
from trainer.verbs.bench.words import ONE_CPU_PROCESS, number, out_of, rounds_of, take_own, with_fixed
from trainer.verbs.prepare import prepare, take_options


def data(words: Sequence[str]) -> int:
    """`bench data WORDS`. Returns: exit code. Raises: UserError."""
    own, others = take_own("data", words, {"rounds": str(BENCHMARKS["data"].rounds), "steps": "50", "out": ""})
    rounds, steps = rounds_of(own), number("steps", own["steps"], 1)
    options, overrides = take_options(with_fixed("data", others, ONE_CPU_PROCESS))
    prepared = prepare(overrides, options)
    from trainer.verbs.bench.loading import sides

    config = prepared.config
    question = Question(
        "data",
        f"{config.batch.global_size} samples by two loaders: {config.task.name} on {config.data.name}",
        "batch",
        "CPU time of the process",
        "every value of every batch, by sums weighted by place",
        1e-9,
    )
    command = f"python -m trainer bench data {shlex.join(words)}"
    comparison = compare(question, sides(prepared, steps), rounds, command)
    out = out_of(own, f"data-{config.task.name}-{config.data.name}")
    write_comparison(comparison, out)
    print_comparison(comparison, out)
    return EXIT_DONE
