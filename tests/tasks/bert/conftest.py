"""Small texts whose class follows from one word, and a tiny encoder with weights, as save_pretrained writes one."""

import csv
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from runs import only_run
from transformers import BertConfig, BertModel, BertTokenizer

from trainer.cli import main
from trainer.config.compose import compose_mapping, typed
from trainer.config.schema import Config

MOODS = {"bad": ["dull", "poor", "sad"], "fair": ["plain", "usual"], "good": ["bright", "fine", "glad", "warm"]}
FILLERS = ["the", "film", "was", "a", "day", "and", "we", "saw", "it", "in", "town", "with", "them", "all"]
SIZES = {"train": 150, "validation": 40, "test": 41}

Composed = Callable[..., Config]


def sentences(rng: random.Random, number: int) -> list[tuple[str, str]]:
    rows = []
    for _ in range(number):
        mood = rng.choice(list(MOODS))
        words = rng.choices(FILLERS, k=rng.randint(1, 20))
        words.insert(rng.randint(0, len(words)), rng.choice(MOODS[mood]))
        rows.append((" ".join(words), mood))
    return rows


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with train.csv, validation.csv and test.csv of columns text, other, label, score."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    for name, size in SIZES.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "other", "label", "score"])
            for text, mood in sentences(rng, size):
                score = list(MOODS).index(mood) + rng.random() / 4
                writer.writerow([text, " ".join(rng.choices(FILLERS, k=4)), mood, score])
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a BERT of 3 layers, 32 wide, and a tokenizer that knows the words of `texts`."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *(w for words in MOODS.values() for w in words)]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=48).save_pretrained(
        folder
    )
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=48,
    )
    BertModel(config, add_pooling_layer=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words(texts: Path, encoder: Path) -> list[str]:
    """The command line of a small run on both."""
    return words_of(texts, encoder)


def words_of(texts: Path, encoder: Path) -> list[str]:
    return [
        "task=bert",
        "model=bert_base",
        f"model.path={encoder}",
        "data=csv",
        *(f"data.{name}={texts / name}.csv" for name in SIZES),
        "data.max_length=40",
        "batch.global_size=12",
        "batch.eval_size=16",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "logger=none",
        "run.report=false",
    ]


@pytest.fixture
def composed(words: Sequence[str]) -> Composed:
    """The configuration of that run with further words; another model replaces the encoder."""

    def compose(*more: str) -> Config:
        replaces = any(word.startswith("model=") for word in more)
        given = [word for word in words if not (replaces and word.startswith("model"))]
        return typed(compose_mapping([*given, *more]))[0]

    return compose


def trained_run(folder: Path, texts: Path, encoder: Path, *more: str) -> Path:
    """Train on copies of texts and encoder, remove them, and move the run's directory to another place."""
    sources, root = folder / "sources", folder / "runs"
    shutil.copytree(texts, sources / "texts")
    shutil.copytree(encoder, sources / "encoder")
    words = [*words_of(sources / "texts", sources / "encoder"), f"run.root={root}", "trainer.max_epochs=2", *more]
    assert main([*words, "optimizer.lr=0.01"]) == 0
    shutil.rmtree(sources)
    moved = folder / "elsewhere"
    shutil.move(only_run(root), moved)
    shutil.rmtree(root)
    return moved


@pytest.fixture(scope="module")
def run_alone(texts: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished classification run, of whose training nothing else is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINER_CACHE", str(tmp_path_factory.mktemp("cache")))
        return trained_run(tmp_path_factory.mktemp("trained"), texts, encoder)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
