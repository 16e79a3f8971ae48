"""Small texts whose class is told by a word, and a tiny encoder with weights, as save_pretrained lays one out."""

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

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
    ]


@pytest.fixture
def composed(words: Sequence[str]) -> Composed:
    """The configuration of that run with further words."""

    def compose(*more: str) -> Config:
        return typed(compose_mapping([*words, *more]))[0]

    return compose


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
