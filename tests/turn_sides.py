"""A side of a measurement in turns, in a module that its process imports quickly."""

from __future__ import annotations

import itertools

from trainer.bench.turns import Turns
from trainer.errors import UserError


def count_steps(turns: Turns, slope: float, fails: bool = False) -> None:
    """Its losses tell its own steps. Args: fails: in the third step, by an error of the user's."""
    for step in itertools.count(1):
        turns.begin_step()
        if fails and step == 3:
            raise UserError("wrong words", "of the user")
        sum(range(200_000))
        turns.end_step(slope * step)
