"""python -m trainer [VERB] WORDS...: from a verb to its function, and from errors to exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from trainer.config.secrets import refer_to_environment
from trainer.errors import EXIT_BUG, EXIT_DONE, EXIT_USER, RankFailure, UserError, nearest, printable

RANK_0_PRINTS_FIRST_S = 3.0
EXIT_PIPE = 141  # as a shell reports a process that SIGPIPE has ended


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns: exit code: 0 done, 2 user error, 75 stopped and resumable, 1 anything else."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = run(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        if is_printing_rank():
            print(refer_to_environment("\n".join(error.lines)), file=sys.stderr)
        else:
            # The launcher ends all ranks when the first one exits, which must not be before rank 0 has printed.
            time.sleep(RANK_0_PRINTS_FIRST_S)
        return EXIT_USER
    except RankFailure as failure:
        print(printable(str(failure)), file=sys.stderr)
        return EXIT_BUG
    except BrokenPipeError:
        if "torch" in sys.modules:  # training or evaluation: it may be another pipe, and its loss is worth a traceback
            raise
        # `trainer --help | head -1`: the reader has gone. Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def run(words: list[str]) -> int:
    """Dispatch the verb, which is the first word if that has no "=". Raises: UserError."""
    if "--version" in words:
        from trainer.version import __version__

        print(__version__)
        return EXIT_DONE
    named = bool(words) and "=" not in words[0] and words[0][:1] not in ("-", "~", "+")
    verb = words.pop(0) if named else "fit"
    if verb not in VERBS:
        raise UserError(f"{verb}: no such verb; {nearest(verb, list(VERBS))}")
    if "-h" in words or "--help" in words:
        from trainer.verbs.help import print_help

        return print_help(verb if named else None, words)
    return VERBS[verb](words)


def is_printing_rank() -> bool:
    """Whether this process prints errors: of several ranks started from the command line, one does."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _verb(module: str, function: str) -> Callable[[list[str]], int]:
    """A verb by the name of its module, imported when it is called, so that no verb waits for the imports of others."""

    def call(words: list[str]) -> int:
        return getattr(importlib.import_module(f"trainer.verbs.{module}"), function)(words)

    return call


VERBS: Mapping[str, Callable[[list[str]], int]] = {
    "fit": _verb("fit", "fit"),
    "plan": _verb("plan", "plan"),
    "doctor": _verb("doctor", "doctor"),
    "eval": _verb("evaluate", "evaluate"),
    "predict": _verb("predict", "predict"),
    "export": _verb("export", "export"),
    "serve": _verb("serve", "serve"),
    "convert": _verb("convert", "convert"),
    "completion": _verb("completion", "completion"),
    "help": _verb("help", "help_verb"),
    "report": _verb("report", "report"),
    "bench": _verb("bench", "bench"),
    "sync": _verb("sync", "sync"),
    "dashboard": _verb("dashboard", "dashboard"),
}
