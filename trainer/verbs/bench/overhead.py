"""bench overhead: what the trainer's loop costs beside the computation of a step."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from functools import partial

from trainer.bench.compare import compare, print_comparison, write_comparison
from trainer.bench.comparison import Question
from trainer.bench.turns import WARM_UP_TURNS, taking_turns
from trainer.errors import EXIT_DONE, UserError
from trainer.verbs.bench.table import BENCHMARKS
from trainer.verbs.bench.words import ONE_CPU_PROCESS, number, out_of, rounds_of, take_own, with_fixed
from trainer.verbs.prepare import prepare, take_options

# Each side takes as many steps as it has turns for, without evaluations.
FIXED = (*ONE_CPU_PROCESS, "logger=none", "trainer.limit_val_batches=0", "trainer.max_epochs=null")


def overhead(words: Sequence[str]) -> int:
    """`bench overhead WORDS`. Returns: exit code. Raises: UserError."""
    own, others = take_own("overhead", words, {"rounds": str(BENCHMARKS["overhead"].rounds), "steps": "50", "out": ""})
    rounds, steps = rounds_of(own), number("steps", own["steps"], 1)
    # The first side takes two turns a round. No side reaches the last step, after which the trainer would save.
    total = (2 * rounds + WARM_UP_TURNS) * steps + 1
    options, overrides = take_options(with_fixed("overhead", others, [*FIXED, f"trainer.max_steps={total}"]))
    config = prepare(overrides, options).config
    if config.trainer.precision != "32-true":
        raise UserError(f"trainer.precision={config.trainer.precision}: the loop by hand knows only 32-true")
    if (config.batch.fixed_micro_size or config.batch.global_size) < config.batch.global_size:
        raise UserError(f"batch.micro_size={config.batch.micro_size}: automatic optimization takes whole batches here")
    from trainer.verbs.bench import loops

    # Read by torch when it is imported in the processes of the sides.
    os.environ["OMP_NUM_THREADS"] = "1"
    question = Question(
        "overhead",
        f"a step by three loops: {config.task.name}, {config.model.name} on {config.data.name}",
        "step",
        "CPU time of the process, on one core",
        f"losses of the {steps} steps of a turn",
        1e-3,
    )
    sides = {"by hand": loops.by_hand, "trainer": loops.ours, "Lightning, automatic": loops.lightning}
    works = {name: partial(side, words=[*options.as_words(), *overrides]) for name, side in sides.items()}
    with taking_turns(works, steps) as turns:
        comparison = compare(question, turns, rounds, f"python -m trainer bench overhead {shlex.join(words)}")
    out = out_of(own, f"overhead-{config.task.name}-{config.model.name}-{config.data.name}")
    write_comparison(comparison, out)
    print_comparison(comparison, out)
    return EXIT_DONE
