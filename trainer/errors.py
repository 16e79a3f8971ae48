"""User errors, printed in at most three lines. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

# Characters of a value in a message: long enough that the path of a file is not cut.
MAX_SHOWN = 240
EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_STOPPED = 75  # BSD's EX_TEMPFAIL: stopped on request, the same command resumes


class UserError(Exception):
    """An error that the user made or can fix: printed without a traceback, exit code 2.

    Args: lines: what was wrong, where, and what is possible; one to three lines.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(printable("\n".join(lines)))

    @property
    def lines(self) -> list[str]:
        """The lines of the message."""
        return str(self).split("\n")


class RankFailure(Exception):
    """A rank that was started failed. The message names the rank, the cause and its log; exit code 1."""


class MicroBatchTooLarge(RankFailure):
    """A step did not fit into memory, and a smaller micro-batch is noted: started again, the ranks take it."""


@dataclass(frozen=True)
class Problem:
    """One error in the configuration.

    key: dotted path as typed on the command line. value: the value that is wrong. advice: what is possible instead.
    """

    key: str
    value: object
    advice: str

    def __str__(self) -> str:
        return f"{self.key}={shown(self.value)}: {self.advice}"


class ConfigError(UserError):
    """All problems of a configuration at once, one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(*(str(problem) for problem in self.problems))


def shown(value: object) -> str:
    """A value as the user would type it, on one line and cut to a length that fits it."""
    text = {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_constant(value) else str(value)
    text = printable(text, kept="")
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def printable(text: str, kept: str = "\n\t") -> str:
    """A text for a terminal: control characters, which may come from a file, as escapes. Args: kept: which stay."""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def _is_constant(value: object) -> bool:
    return value is None or isinstance(value, bool)


def nearest(word: str, choices: Sequence[str]) -> str:
    """Advice that names the closest of the choices, or lists them."""
    close = get_close_matches(word, choices, n=1, cutoff=0.5)
    listing = ", ".join(sorted(choices))
    if close and len(listing) > 100:
        return f"did you mean {close[0]}?"
    return f"did you mean {close[0]}? (possible: {listing})" if close else f"possible: {listing}"


def counted(number: int, noun: str) -> str:
    """A number and its noun for a message: 1 rank, 2 ranks, 0 GPUs."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
