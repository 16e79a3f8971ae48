"""The ranker: a logistic regression on the features of a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from examples.recommendation.features import FEATURES, Features, ItemSpace
from examples.recommendation.split import Query
from examples.recommendation.statistics import Statistics
from trainer import UserError


@dataclass(frozen=True)
class Ranker:
    """Weights of standardised features, in the order of FEATURES; plain numbers, so a file of them is no code."""

    mean: list[float]
    scale: list[float]
    weights: list[float]
    intercept: float

    @classmethod
    def fit(cls, queries: Sequence[Query], space: ItemSpace, statistics: Statistics, used: Sequence[str]) -> Ranker:
        """Learn from queries which of their candidates were targets.

        Args: statistics: from before the queries. used: the features that may have a weight.
        Raises: UserError: no candidate was a target.
        """
        features = [space.features(query.history, statistics) for query in queries]
        labels = [np.isin(found.candidates, query.targets) for found, query in zip(features, queries, strict=True)]
        if not any(label.any() for label in labels):
            raise UserError("path: too few interactions between the cuts in time to fit a ranker")
        values, label = np.concatenate([found.values for found in features]), np.concatenate(labels)
        chosen = np.array([name in used for name in FEATURES])
        # A feature that never varies is left as it is.
        mean, scale = values.mean(0), np.where(values.std(0) > 0, values.std(0), 1.0)
        model = LogisticRegression(max_iter=1000).fit(((values - mean) / scale)[:, chosen], label)
        weights = np.zeros(len(FEATURES))
        weights[chosen] = model.coef_[0]
        return cls(mean.tolist(), scale.tolist(), weights.tolist(), float(model.intercept_[0]))

    def parts(self, features: Features) -> np.ndarray:
        """What each feature adds to the logit of each candidate: (C, features)."""
        return (features.values - np.array(self.mean)) / np.array(self.scale) * np.array(self.weights)

    def order(self, features: Features) -> np.ndarray:
        """Positions of the candidates, best first."""
        return np.argsort(-self.parts(features).sum(1), kind="stable")

    def as_json(self) -> dict[str, object]:
        """The numbers with the names of the features."""
        return {"features": list(FEATURES), **asdict(self)}
