"""The words of a benchmark: its own options, and those of the configuration that it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.bench.rounds import FEWEST_ROUNDS
from trainer.errors import UserError, nearest

FEWEST_STEPS = 12


def take_own(
    name: str, words: Sequence[str], own: Mapping[str, str], choices: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Split the words. Args: own: options with their defaults. choices: words that may come first.

    Returns: (own options, other words). Raises: UserError: a word is neither an option nor key=value.
    """
    found, others = dict(own), []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and not word.startswith("-"):
            possible = f"; {nearest(word, choices)}" if choices else f", as in {next(iter(own))}=VALUE"
            raise UserError(f"bench {name} {word}: not of the form key=value{possible}")
        if key in own:
            found[key] = value
        else:
            others.append(word)
    return found, others


def number(key: str, text: str, fewest: int) -> int:
    """A whole number. Raises: UserError: it is none, or too small."""
    if not text.isdecimal() or int(text) < fewest:
        raise UserError(f"{key}={text}: a number from {fewest} on is needed")
    return int(text)


def rounds_of(own: Mapping[str, str]) -> int:
    """The option `rounds`. Raises: UserError: fewer than an interval needs."""
    return number("rounds", own["rounds"], FEWEST_ROUNDS)


def out_of(own: Mapping[str, str], name: str) -> Path:
    """The option `out`, or the folder of this benchmark. Args: name: of the benchmark, and what it measures."""
    return Path(own["out"] or f"outputs/bench/{name}")


# Of the benchmarks that measure the CPU time of this process, or of one for each side.
ONE_CPU_PROCESS = ("trainer.accelerator=cpu", "trainer.devices=1")


def with_fixed(name: str, words: Sequence[str], fixed: Sequence[str]) -> list[str]:
    """The words of a configuration, and those that a benchmark sets itself. Raises: UserError: they disagree."""
    values = dict(word.split("=", 1) for word in fixed)
    for word in words:
        key, _, value = word.partition("=")
        if key in values and value != values[key]:
            raise UserError(f"{word}: bench {name} measures with {key}={values[key]}; leave it out")
    return [*words, *fixed]
