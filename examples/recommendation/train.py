"""Train the encoder by the trainer, encode all items, and fit the ranker on what came after the encoder's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import trainer
from examples.recommendation.application import APPLICATION, DATA, VECTORS, Application
from examples.recommendation.features import FEATURES, OF_TEXT, ItemSpace
from examples.recommendation.files import Catalogue, read_folder, write_folder
from examples.recommendation.generated import NAME, generated
from examples.recommendation.movielens import is_movielens, read_movielens
from examples.recommendation.options import TrainOptions
from examples.recommendation.ranker import Ranker
from examples.recommendation.split import Cuts, check_no_leakage, cuts_of, queries_between
from examples.recommendation.statistics import Statistics

PLUGIN = Path(__file__).parent / "two_tower"


class Stopped(Exception):
    """Training was stopped on request."""


def train(options: TrainOptions, for_trainer: Sequence[str]) -> None:
    """Train from files. Args: for_trainer: overrides of the encoder's run. Raises: UserError, Stopped."""
    out = Path(options.out)
    catalogue = read_source(options.path)
    for note in catalogue.notes:
        print(f"note: {note}")
    print(
        f"{len(catalogue.ids):,} items, {len(catalogue.user_ids):,} users, {len(catalogue.interactions):,} interactions"
    )
    cuts = cuts_of(catalogue.interactions)
    (out / APPLICATION).unlink(missing_ok=True)
    write_folder(catalogue, out / DATA)
    run = train_encoder(out, cuts, options.model, for_trainer)
    print(f"encoding {len(catalogue.ids):,} item texts")
    vectors = encode(run, catalogue.texts)
    np.save(out / VECTORS, vectors)
    rankers = fit_rankers(catalogue, vectors, cuts)
    weights = dict(zip(FEATURES, rankers[0].weights, strict=True))
    print("weights of the ranker: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()))
    source = Path(options.path).name if options.path else NAME
    Application(source, options.model, [*for_trainer], str(run.relative_to(out)), cuts, *rankers).write(out)
    print(f"ready; next: python -m examples.recommendation evaluate out={out}, or serve out={out}")


def read_source(path: str) -> Catalogue:
    """The data that the user names. Raises: UserError: see read_folder."""
    folder = Path(path).expanduser()
    if not path:
        return generated()
    return read_movielens(folder) if is_movielens(folder) else read_folder(folder)


def train_encoder(out: Path, cuts: Cuts, model: str, for_trainer: Sequence[str]) -> Path:
    """Returns: the directory of the run. Raises: UserError, Stopped."""
    result = trainer.fit(
        f"plugins=[{PLUGIN}]",
        "task=two_tower",
        f"model=tower_{model}",
        f"data.folder={out / DATA}",
        f"data.train_before={cuts.train_before}",
        f"data.validate_before={cuts.validate_before}",
        f"run.root={out / 'runs'}",
        "logger=none",
        *for_trainer,
    )
    if result.status != "finished":
        raise Stopped
    return result.run_dir


def encode(run: Path, texts: Sequence[str]) -> np.ndarray:
    """Vectors (I, D) float32 of item texts; similar lengths are encoded together, so little is padded."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    encoder = trainer.load(run, f"plugins=[{PLUGIN}]")
    vectors = encoder.outputs([texts[number] for number in order]).cpu().numpy()
    restored = np.empty_like(vectors)
    restored[order] = vectors
    return restored


def fit_rankers(catalogue: Catalogue, vectors: np.ndarray, cuts: Cuts) -> tuple[Ranker, Ranker]:
    """Rankers with all features and without those of the texts, from what came between the cuts."""
    interactions = catalogue.interactions
    queries = queries_between(interactions, cuts.train_before, cuts.validate_before)
    statistics = Statistics.before(interactions, cuts.train_before, len(catalogue.ids))
    check_no_leakage(statistics.latest, cuts.train_before, queries)
    space = ItemSpace(vectors, catalogue.genres)
    with_text = Ranker.fit(queries, space, statistics, FEATURES)
    without = Ranker.fit(queries, space, statistics, [name for name in FEATURES if name not in OF_TEXT])
    return with_text, without
