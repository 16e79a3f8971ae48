"""What the interactions before a moment say about items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from examples.recommendation.files import Interactions

RECENT_DAYS = 180
DAY_S = 86_400
# Added to the product of counts, so that two items which one user has in common do not count as alike.
SHRINKAGE = 10.0


@dataclass(frozen=True)
class Statistics:
    """Of the interactions before a moment.

    latest: time of the newest one in seconds. likes (I,) int64: users of each item. recent_likes (I,) int64: in the
    RECENT_DAYS days before the moment. by_user (U, I): sparse, 1 where a user has an item.
    """

    latest: float
    likes: np.ndarray
    recent_likes: np.ndarray
    by_user: sparse.csc_matrix

    @classmethod
    def before(cls, interactions: Interactions, moment: float, num_items: int) -> Statistics:
        """Args: moment: in seconds; what happens at it is not counted."""
        past = interactions.select(interactions.times < moment)
        recent = past.select(past.times >= moment - RECENT_DAYS * DAY_S)
        num_users = int(interactions.users.max()) + 1
        cells = (np.ones(len(past)), (past.users, past.items))
        return cls(
            latest=float(past.times.max(initial=0.0)),
            likes=np.bincount(past.items, minlength=num_items),
            recent_likes=np.bincount(recent.items, minlength=num_items),
            by_user=sparse.csc_matrix(cells, shape=(num_users, num_items)),
        )

    def liked_with(self, history: np.ndarray) -> np.ndarray:
        """How often each item was liked by those who liked an item of a history: (H, I) float64.

        The number of users in common, divided by the square root of the product of both numbers of users.
        """
        common = (self.by_user[:, history].T @ self.by_user).toarray()
        counts = self.likes.astype(np.float64)
        return common / np.sqrt(counts[history][:, None] * counts + SHRINKAGE)
