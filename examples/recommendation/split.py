"""The split by time, and the queries on which rankings are fitted and measured.

Two cuts in time are the same for all users: the encoder learns from what was before the first, the ranker from what
lies between them, and the measures are taken on what comes after the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.recommendation.files import Interactions
from trainer import UserError

# Shares of all interactions that come before the cuts.
TRAIN_SHARE, VALIDATION_SHARE = 0.65, 0.15
# Items of a user that a query knows at least.
MIN_HISTORY = 5


@dataclass(frozen=True)
class Cuts:
    """Seconds since 1970. train_before: end of the encoder's data. validate_before: end of the ranker's."""

    train_before: float
    validate_before: float


@dataclass(frozen=True)
class Query:
    """One user at one moment.

    history (H,) int64: items so far, latest last. moment: time of the last of them in seconds. targets (T,) int64: the
    items that came later. first_target: time of the first of these in seconds.
    """

    user: int
    history: np.ndarray
    moment: float
    targets: np.ndarray
    first_target: float


class LeakageError(Exception):
    """Something that a measure rests on is not older than what it predicts. A bug of this application."""


def cuts_of(interactions: Interactions) -> Cuts:
    """The two cuts. Raises: UserError: all interactions are at nearly the same time."""
    shares = [TRAIN_SHARE, TRAIN_SHARE + VALIDATION_SHARE]
    first, second = np.quantile(interactions.times, shares, method="nearest").tolist()
    if not interactions.times.min() < first < second:
        raise UserError("path: the interactions are at too few different times to be split by time")
    return Cuts(first, second)


def queries_between(interactions: Interactions, start: float, end: float) -> list[Query]:
    """One query for each user with interactions from `start` to before `end`, in seconds.

    The history is what the user did before `start`. Where that is less than MIN_HISTORY items, the user is new: then
    the first MIN_HISTORY items are the history, and the later ones the targets. Items at the very moment of the last
    item of the history belong to it. Users without a later item have no query.
    """
    queries = []
    borders = np.flatnonzero(np.diff(interactions.users)) + 1
    numbers = np.split(np.arange(len(interactions)), borders)
    for rows in numbers:
        times, items = interactions.times[rows], interactions.items[rows]
        known = max(int(np.searchsorted(times, start)), MIN_HISTORY)
        until = int(np.searchsorted(times, end))
        if known >= until:
            continue
        moment = float(times[known - 1])
        known = int(np.searchsorted(times, moment, side="right"))
        if known < until:
            user = int(interactions.users[rows[0]])
            queries.append(Query(user, items[:known], moment, items[known:until], float(times[known])))
    return queries


def check_no_leakage(latest: float, start: float, queries: list[Query]) -> None:
    """Check that what describes items is from before `start`, and that queries look ahead in time.

    Args: latest: time of the newest interaction that statistics, encoder or ranker have seen, in seconds.
    Raises: LeakageError.
    """
    if latest >= start:
        raise LeakageError(f"statistics reach to {latest:.0f}, the queries begin at {start:.0f}")
    for query in queries:
        if not query.first_target > query.moment or query.first_target < start:
            raise LeakageError(f"user {query.user}: a target at {query.first_target:.0f} is not later than its history")
        if np.isin(query.targets, query.history).any():
            raise LeakageError(f"user {query.user}: a target is in the history")
