"""bench bucketing: training on texts grouped by length against shuffled texts with more padding."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from trainer.bench.compare import compare, print_comparison, write_comparison
from trainer.bench.comparison import Question
from trainer.errors import EXIT_DONE
from trainer.verbs.bench.words import ONE_CPU_PROCESS, number, out_of, rounds_of, take_own, with_fixed
from trainer.verbs.prepare import prepare, take_options


def bucketing(words: Sequence[str]) -> int:
    """`bench bucketing WORDS`. Returns: exit code. Raises: UserError."""
    own, others = take_own("bucketing", words, {"rounds": "7", "steps": "10", "out": ""})
    rounds, steps = rounds_of(own), number("steps", own["steps"], 1)
    words_of_run = with_fixed("bucketing", others, ONE_CPU_PROCESS)
    options, overrides = take_options(words_of_run)
    config = prepare(overrides, options).config
    from trainer.verbs.bench.padding import sides

    question = Question(
        "bucketing",
        f"a training step on texts: {config.task.name}, {config.model.name} on {config.data.name}, "
        f"{config.batch.global_size} texts",
        "step",
        "CPU time of the process",
        "loss of the same texts, without dropout",
        1e-4,
    )
    command = f"python -m trainer bench bucketing {shlex.join(words)}"
    comparison = compare(question, sides(words_of_run, steps), rounds, command)
    out = out_of(own, f"bucketing-{config.task.name}-{config.model.name}-{config.data.name}")
    write_comparison(comparison, out)
    print_comparison(comparison, out)
    return EXIT_DONE
