"""The folder of a trained application: what is in it, and the recommender that is read from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.recommendation.features import FEATURES, ItemSpace
from examples.recommendation.files import Catalogue, read_folder
from examples.recommendation.ranker import Ranker
from examples.recommendation.split import Cuts
from examples.recommendation.statistics import RECENT_DAYS, Statistics
from trainer import UserError

DATA, VECTORS, APPLICATION = "data", "vectors.npy", "application.json"


@dataclass(frozen=True)
class Application:
    """A trained application.

    source: name of the data. model, overrides: of the encoder's training. run: directory of its run, from the folder
    on. cuts: in time. ranker: with all features. without_text: fitted without those of the encoder.
    """

    source: str
    model: str
    overrides: list[str]
    run: str
    cuts: Cuts
    ranker: Ranker
    without_text: Ranker

    def write(self, out: Path) -> None:
        """Write the description; it comes last, so a folder that has it is complete."""
        value = {
            "source": self.source,
            "model": self.model,
            "overrides": self.overrides,
            "run": self.run,
            "cuts": vars(self.cuts),
            "ranker": self.ranker.as_json(),
            "without_text": self.without_text.as_json(),
        }
        (out / APPLICATION).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, out: Path) -> Application:
        """Raises: UserError: nothing was trained there, or the file is damaged or of another version."""
        try:
            value = json.loads((out / APPLICATION).read_text(encoding="utf-8"))
            rankers = [_ranker(value[name]) for name in ("ranker", "without_text")]
            described = {name: value[name] for name in ("source", "model", "overrides", "run")}
            return cls(**described, cuts=Cuts(**value["cuts"]), ranker=rankers[0], without_text=rankers[1])
        except FileNotFoundError as error:
            train = f"python -m examples.recommendation train out={out}"
            raise UserError(f"out={out}: no {APPLICATION} there", f"first: {train}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"out={out}: {APPLICATION} is damaged or of another version; train anew") from error


def _ranker(value: dict[str, Any]) -> Ranker:
    if tuple(value.pop("features")) != FEATURES:
        raise ValueError("other features")
    return Ranker(**value)


def read_vectors(out: Path, num_items: int) -> np.ndarray:
    """The vectors of all items, (I, D) float32. Raises: UserError: they are missing or do not fit the items."""
    try:
        vectors = np.load(out / VECTORS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"out={out}: no readable {VECTORS}; train anew") from error
    if vectors.ndim != 2 or len(vectors) != num_items:
        raise UserError(f"out={out}: {VECTORS} is of other items than {DATA}/; train anew")
    return vectors


@dataclass(frozen=True)
class Recommendation:
    """item: its number. score: probability by the ranker that a user with this history goes on to like the item.
    reasons: sentences, the one that counts most first.
    """

    item: int
    score: float
    reasons: list[str]


class Recommender:
    """Ranked lists with reasons, from everything that is known today."""

    def __init__(self, application: Application, catalogue: Catalogue, vectors: np.ndarray) -> None:
        self.application, self.catalogue = application, catalogue
        self.space = ItemSpace(vectors, catalogue.genres)
        now = float(catalogue.interactions.times.max()) + 1.0
        self.statistics = Statistics.before(catalogue.interactions, now, len(catalogue.ids))
        self.numbers = {item: number for number, item in enumerate(catalogue.ids)}
        order = np.argsort(-self.statistics.likes, kind="stable")
        self.popularity_rank = np.empty(len(order), dtype=np.int64)
        self.popularity_rank[order] = np.arange(1, len(order) + 1)

    @classmethod
    def read(cls, out: Path) -> Recommender:
        """Raises: UserError: nothing was trained there, or a file is damaged."""
        application = Application.read(out)
        catalogue = read_folder(out / DATA)
        return cls(application, catalogue, read_vectors(out, len(catalogue.ids)))

    def recommend(self, history: Sequence[int], k: int) -> list[Recommendation]:
        """The k best items for a history of at least one item, latest last."""
        features = self.space.features(np.asarray(history), self.statistics)
        ranker = self.application.ranker
        parts = ranker.parts(features)
        # What raises a score only because there is little of it, such as few users, is no reason to show.
        raising = np.where(features.values > np.array(ranker.mean), parts, 0.0)
        chosen = ranker.order(features)[:k]
        logits = parts.sum(1) + ranker.intercept
        return [
            Recommendation(
                item=int(features.candidates[row]),
                score=float(1 / (1 + np.exp(-logits[row]))),
                reasons=self._reasons(
                    int(features.candidates[row]),
                    dict(zip(FEATURES, raising[row], strict=True)),
                    int(features.nearest[row]),
                    int(features.liked_with[row]),
                ),
            )
            for row in chosen
        ]

    def _reasons(self, item: int, parts: dict[str, float], nearest: int, liked_with: int) -> list[str]:
        """What raised an item, most first. Args: parts: of the logit, by feature; 0 or less is no reason."""
        texts, statistics = self.catalogue.texts, self.statistics
        cosine = float(self.space.vectors[item] @ self.space.vectors[nearest])
        likes, recent = int(statistics.likes[item]), int(statistics.recent_likes[item])
        shared = sorted(self.catalogue.genres[item] & self.catalogue.genres[nearest])
        reasons = {
            f"text similar to “{texts[nearest]}” (cosine {cosine:.2f})": parts["similarity"] + parts["nearest"],
            f"often liked together with “{texts[liked_with]}”": parts["liked_with"],
            f"number {self.popularity_rank[item]:,} in popularity, {likes:,} users": parts["popularity"],
            f"{recent:,} users in the last {RECENT_DAYS} days": parts["recency"],
            **({f"genre {', '.join(shared)}": parts["genres"]} if shared else {}),
        }
        return [reason for reason, part in sorted(reasons.items(), key=lambda pair: -pair[1]) if part > 0]
