"""The words of a call, which are those of the command line."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.errors import UserError
from trainer.verbs.prepare import Options, parse_options


def taken_apart(name: str, words: Sequence[str]) -> tuple[Options, list[str]]:
    """Options and overrides of a call. Args: name: of the function, for messages.

    Raises: UserError: a word is no text, or an option that only the command line has.
    """
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"trainer.{name}: {word!r} is no text", 'overrides are texts, as in "optimizer.lr=0.1"')
        if word in ("-m", "--multirun"):
            advice = f"call trainer.{name} in a loop, or use python -m trainer -m"
            raise UserError(f"{word}: a sweep is of the command line", advice)
    return parse_options(words, ("--config-dir",))
