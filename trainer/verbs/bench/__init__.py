"""The verb bench: measure instead of guess."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from trainer.errors import UserError, nearest

# Each a module of this package with a function of the same name.
BENCHMARKS = ("scaling",)


def bench(words: Sequence[str]) -> int:
    """`bench NAME WORDS`. Returns: exit code. Raises: UserError: no such benchmark, or wrong words."""
    name, *rest = words or [""]
    if name not in BENCHMARKS:
        what = f"bench {name}: no such benchmark; {nearest(name, BENCHMARKS)}" if name else "bench: needs a name, as in"
        raise UserError(what if name else f"{what} bench scaling task=cnn trainer.devices=1,2")
    return getattr(importlib.import_module(f"trainer.verbs.bench.{name}"), name)(rest)
