"""bench startup: CPU time until a command has printed its help or a user error, against what it cannot do without."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from statistics import fmean

from trainer.bench.compare import compare, print_comparison, write_comparison
from trainer.bench.comparison import Question
from trainer.bench.process import run_process
from trainer.bench.rounds import Sample
from trainer.errors import EXIT_DONE, EXIT_USER, UserError
from trainer.verbs.bench.words import number, out_of, rounds_of, take_own

# Arguments of the interpreter, and the exit code that each has to end with.
COMMANDS: dict[str, tuple[list[str], int]] = {
    "python -c pass": (["-c", "pass"], EXIT_DONE),
    "python -c 'import hydra'": (["-c", "import hydra"], EXIT_DONE),
    "python -c 'import trainer'": (["-c", "import trainer"], EXIT_DONE),
    "python -m trainer --help": (["-m", "trainer", "--help"], EXIT_DONE),
    "python -m trainer optimizer.lrr=1": (["-m", "trainer", "optimizer.lrr=1"], EXIT_USER),
}


def startup(words: Sequence[str]) -> int:
    """`bench startup [starts=N rounds=N out=DIR]`. Returns: exit code. Raises: UserError."""
    own, others = take_own("startup", words, {"rounds": "7", "starts": "3", "out": ""})
    if others:
        raise UserError(f"bench startup {others[0]}: takes no words of a training run, only starts, rounds and out")
    rounds, starts = rounds_of(own), number("starts", own["starts"], 1)
    question = Question(
        "startup", "processes from start to end", "process", "CPU time of the process", "the exit code of each process"
    )
    sides = {name: _side(arguments, code, starts) for name, (arguments, code) in COMMANDS.items()}
    comparison = compare(question, sides, rounds, f"python -m trainer bench startup {shlex.join(words)}".strip())
    out = out_of(own, "startup")
    write_comparison(comparison, out)
    print_comparison(comparison, out)
    return EXIT_DONE


def _side(arguments: Sequence[str], code: int, starts: int) -> Callable[[], Sample]:
    def measure() -> Sample:
        finished = [run_process([sys.executable, *arguments], {}) for _ in range(starts)]
        for each in finished:
            if each.code != code:
                raise RuntimeError(f"{shlex.join(arguments)} ended with {each.code}, not {code}\n{each.stderr}")
        return Sample(fmean(each.cpu_s for each in finished))

    return measure
