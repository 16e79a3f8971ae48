"""The verb bench: measure instead of guess."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from trainer.errors import UserError, nearest
from trainer.verbs.bench.table import BENCHMARKS


def bench(words: Sequence[str]) -> int:
    """`bench NAME WORDS`. Returns: exit code. Raises: UserError: no such benchmark, or wrong words."""
    name, *rest = words or [""]
    if name not in BENCHMARKS:
        what = f"bench {name}: no such benchmark; {nearest(name, list(BENCHMARKS))}"
        raise UserError(what if name else "bench: needs a name, as in bench scaling task=cnn trainer.devices=1,2")
    module, _, function = BENCHMARKS[name].function.partition(":")
    return getattr(importlib.import_module(f"trainer.verbs.bench.{module}"), function)(rest)
