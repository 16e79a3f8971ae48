"""Where a server saturates: rates that rise until one is not sustained, and then in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.bench.load import Offered

FACTOR = 2.0
MOST_FACTORS = 16
HALVINGS = 3  # of the interval, as a ratio: 2 becomes 1.09
SHARE = 0.5


@dataclass(frozen=True)
class Saturation:
    """rows: of every rate that was measured, in this order. highest: that is sustained, None where none is. lowest:
    above it that is not sustained, None where all are. at_half: of 50 % of the highest.
    """

    rows: Sequence[Offered]
    highest: Offered | None
    lowest: Offered | None
    at_half: Offered | None


def find_saturation(measure: Callable[[float], Offered], first_per_s: float) -> Saturation:
    """Rise by FACTOR from the first rate until one is not sustained, or fall until one is; then halve the interval."""
    rows = [measure(first_per_s)]
    factor = FACTOR if rows[0].is_sustained else 1 / FACTOR
    while len(rows) <= MOST_FACTORS and rows[-1].is_sustained == rows[0].is_sustained:
        rows.append(measure(rows[-1].rate_per_s * factor))
    for _ in range(HALVINGS):
        highest, lowest = bracket(rows)
        if highest is None or lowest is None:
            break
        rows.append(measure((highest.rate_per_s * lowest.rate_per_s) ** 0.5))
    return _with_half(measure, rows)


def measure_rates(measure: Callable[[float], Offered], rates_per_s: Sequence[float]) -> Saturation:
    """The given rates, from the lowest to the highest."""
    return _with_half(measure, [measure(rate) for rate in sorted(rates_per_s)])


def bracket(rows: Sequence[Offered]) -> tuple[Offered | None, Offered | None]:
    """The lowest rate that is not sustained, and the highest one below it. Returns: (highest, lowest)."""
    lowest = min((row for row in rows if not row.is_sustained), key=lambda row: row.rate_per_s, default=None)
    below = [row for row in rows if row.is_sustained and (lowest is None or row.rate_per_s < lowest.rate_per_s)]
    return max(below, key=lambda row: row.rate_per_s, default=None), lowest


def _with_half(measure: Callable[[float], Offered], rows: list[Offered]) -> Saturation:
    highest, lowest = bracket(rows)
    at_half = None if highest is None else measure(SHARE * highest.rate_per_s)
    return Saturation(rows if at_half is None else [*rows, at_half], highest, lowest, at_half)
