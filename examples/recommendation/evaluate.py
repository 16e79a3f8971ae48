"""Measure the recommender and the baselines on what came after the second cut in time."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

import trainer
from examples.recommendation.application import DATA, Application, read_vectors
from examples.recommendation.baselines import BM25, top
from examples.recommendation.features import MAX_HISTORY, ItemSpace
from examples.recommendation.files import Catalogue, read_folder
from examples.recommendation.generated import NAME
from examples.recommendation.metrics import Estimate, bootstrap, coverage, list_metrics, novelty
from examples.recommendation.options import EvaluateOptions
from examples.recommendation.split import Query, check_no_leakage, queries_between
from examples.recommendation.statistics import Statistics
from trainer import UserError

RANKER, WITHOUT_TEXT, SIMILARITY, LIKED_WITH = "ranker", "ranker without text", "encoder alone", "liked together alone"
POPULARITY, RECENCY, TEXT_MATCH = "popularity", "recency", "BM25"
BASELINES = (POPULARITY, RECENCY, TEXT_MATCH)
METRICS = ("recall", "ndcg", "mrr", "novelty")
# Ranks a history's items.
Ranking = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    overrides: of the encoder's training. estimates: by ranking and metric. coverage: by ranking. gains: difference of
    NDCG between the ranker and each other ranking, over the same users.
    """

    source: str
    model: str
    overrides: Sequence[str]
    k: int
    num_users: int
    estimates: Mapping[str, Mapping[str, Estimate]]
    coverage: Mapping[str, float]
    gains: Mapping[str, Estimate]

    def table(self) -> str:
        """A Markdown table, and what it says about the ranker."""
        note = " (generated: says nothing about real users)" if self.source == NAME else ""
        model = " ".join([self.model, *self.overrides])
        head = f"data: {self.source}{note}; encoder: {model}; {self.num_users} users; lists of {self.k}; "
        lines = [head + "95% intervals over users", "", f"| ranking | {' | '.join(METRICS)} | coverage |"]
        lines.append("|---" * (len(METRICS) + 2) + "|")
        for name, estimates in self.estimates.items():
            cells = [str(estimates[metric]) for metric in METRICS]
            lines.append(f"| {name} | {' | '.join(cells)} | {self.coverage[name]:.4f} |")
        return "\n".join([*lines, "", *self.verdicts()])

    def verdicts(self) -> list[str]:
        """For each baseline, whether the intervals of NDCG are apart."""
        own = self.estimates[RANKER]["ndcg"]
        lines = []
        for name, gain in self.gains.items():
            other = self.estimates[name]["ndcg"]
            apart = "do not overlap" if own.low > other.high or own.high < other.low else "overlap"
            lines.append(f"ndcg of the ranker minus {name}: {gain}; the two intervals {apart}")
        return lines


def evaluate(options: EvaluateOptions, command: Sequence[str]) -> Evaluation:
    """Args: command: the words to be recorded with the result. Raises: UserError: nothing was trained, or no user is
    left to measure on.
    """
    out = Path(options.out)
    application = Application.read(out)
    catalogue = read_folder(out / DATA)
    measured = measure(application, catalogue, read_vectors(out, len(catalogue.ids)), options.k)
    if options.result:
        write_result(measured, Path(options.result), command)
    return measured


def measure(application: Application, catalogue: Catalogue, vectors: np.ndarray, k: int) -> Evaluation:
    """Measure all rankings on the same queries. Raises: UserError: there are none."""
    start, interactions = application.cuts.validate_before, catalogue.interactions
    queries = queries_between(interactions, start, np.inf)
    if not queries:
        raise UserError("path: no user has enough interactions after the second cut in time")
    statistics = Statistics.before(interactions, start, len(catalogue.ids))
    check_no_leakage(statistics.latest, start, queries)
    space = ItemSpace(vectors, catalogue.genres)
    lists = {
        name: [ranking(query.history) for query in queries]
        for name, ranking in rankings(application, catalogue, space, statistics, k).items()
    }
    num_users = len(np.unique(interactions.users[interactions.times < start]))
    values = {name: _values(each, queries, statistics, num_users, k) for name, each in lists.items()}
    own = values[RANKER]["ndcg"]
    return Evaluation(
        source=application.source,
        model=application.model,
        overrides=application.overrides,
        k=k,
        num_users=len(queries),
        estimates={name: {metric: bootstrap(each[metric]) for metric in METRICS} for name, each in values.items()},
        coverage={name: coverage(each, len(catalogue.ids)) for name, each in lists.items()},
        gains={name: bootstrap(own - values[name]["ndcg"]) for name in values if name != RANKER},
    )


def rankings(
    application: Application, catalogue: Catalogue, space: ItemSpace, statistics: Statistics, k: int
) -> dict[str, Ranking]:
    """The rankings by name: each takes a history, latest item last, and returns k items, best first."""
    bm25 = BM25(catalogue.texts)

    def ranked(history: np.ndarray, with_text: bool) -> np.ndarray:
        features = space.features(history, statistics)
        ranker = application.ranker if with_text else application.without_text
        return features.candidates[ranker.order(features)[:k]]

    return {
        RANKER: lambda history: ranked(history, True),
        WITHOUT_TEXT: lambda history: ranked(history, False),
        SIMILARITY: lambda history: space.most_similar(history, k),
        LIKED_WITH: lambda history: top(statistics.liked_with(history[-MAX_HISTORY:]).mean(0), history, k),
        POPULARITY: lambda history: top(statistics.likes, history, k),
        RECENCY: lambda history: top(statistics.recent_likes, history, k),
        TEXT_MATCH: lambda history: top(bm25.scores(history), history, k),
    }


def _values(
    lists: Sequence[np.ndarray], queries: Sequence[Query], statistics: Statistics, num_users: int, k: int
) -> dict[str, np.ndarray]:
    """Each metric of each user, (U,)."""
    rows = [
        {**list_metrics(ranked, query.targets, k), "novelty": novelty(ranked, statistics.likes, num_users)}
        for ranked, query in zip(lists, queries, strict=True)
    ]
    return {metric: np.array([row[metric] for row in rows]) for metric in METRICS}


def write_result(measured: Evaluation, folder: Path, command: Sequence[str]) -> None:
    """Write result.md and result.json, with date, command and versions."""
    packages = {name: version(name) for name in ("torch", "scikit-learn", "bm25s", "numpy")}
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(command),
        "versions": {"trainer": trainer.__version__, "python": platform.python_version(), **packages},
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# Recommendation on {measured.source}", "", measured.table(), ""]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines += [f"{facts['date']}, `{facts['command']}`; {versions}", ""]
    (folder / "result.md").write_text("\n".join(lines), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps({**facts, **asdict(measured)}, indent=1) + "\n", encoding="utf-8")
