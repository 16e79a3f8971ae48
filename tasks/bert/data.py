"""Labelled texts: read, split, tokenized once, and batched by length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tasks.bert.config import BertModelConfig, BertTaskConfig, IntentsConfig
from tasks.bert.intents import intent_splits
from tasks.bert.labels import Labels, is_unlabelled
from tasks.bert.tokenizers import build_tokenizer
from trainer.config.schema import Config
from trainer.data.module import DataModule
from trainer.data.samplers import StepSampler
from trainer.data.sources import Source, load_splits, split_fingerprint
from trainer.data.texts.buffer import TokenBuffer, TokenSet
from trainer.data.texts.config import StoredTextConfig, TextDataConfig, TextFilesConfig
from trainer.data.texts.length_sampler import LengthGroupedSampler
from trainer.data.texts.tokenization import tokenize_split
from trainer.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets

HOLD_OUT_SEED = 0  # not the run's: runs of several seeds are compared on the same validation split


class TextData(DataModule):
    """Sets of labelled texts as token buffers, with the tokenizer and the labels they were made with."""

    tokenizer: PreTrainedTokenizerBase
    labels: Labels

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        assert isinstance(config.data, TextDataConfig)
        assert isinstance(config.model, BertModelConfig)
        assert isinstance(config.task, BertTaskConfig)
        self.data, self.model, self.task = config.data, config.model, config.task
        self.columns = [column for column in (config.data.text, config.data.text_pair) if column is not None]
        self.notes: list[str] = []
        self.splits: dict[str, datasets.Dataset] = {}
        self.token_sets: dict[str, TokenSet] = {}

    def load(self, device: torch.device) -> None:
        """See DataModule."""
        splits = read_splits(self.data)
        for name, split in splits.items():
            check_columns(split, name, {"data.label": self.data.label, **self._text_keys()})
        splits, self.notes = arrange_splits(splits, self.data)
        self.splits = splits
        train = splits["train"]
        self.labels = Labels.of(train, self.data.label, self.task.kind)
        texts = (text for column in self.columns for text in train[column])
        self.tokenizer = build_tokenizer(self.model, texts, f"{split_fingerprint(train)} {self.columns}")
        for name, split in splits.items():
            labels = self.labels.encode(split, name)
            buffer = tokenize_split(split, name, self.columns, self.tokenizer, self.data.max_length)
            self.token_sets[name] = self.token_set(buffer, labels)
        self.sets = self.token_sets

    def describe(self) -> Mapping[str, object]:
        """See DataModule."""
        names = self.labels.names
        facts: dict[str, object] = {name: _split_facts(tokens.buffer) for name, tokens in self.token_sets.items()}
        facts["labels"] = "scores" if names is None else f"{len(names)}, {self.labels.source}: {', '.join(names)}"
        if self.notes:
            facts["notes"] = "; ".join(self.notes)
        return facts

    def train_sampler(self) -> StepSampler:
        """Global batches of like length."""
        lengths = self.token_sets["train"].buffer.lengths
        size, pool, seed = self.config.batch.global_size, self.data.length_pool_batches, self.config.seed
        return LengthGroupedSampler(lengths, size, pool, seed)

    def class_counts(self) -> np.ndarray:
        """Training texts of each class, (C,) int64."""
        assert self.labels.names is not None
        return np.bincount(self.token_sets["train"].labels, minlength=len(self.labels.names))

    def joined_texts(self, name: str) -> list[str]:
        """Texts of a split; the sentences of a pair are joined by a space."""
        columns = [self.splits[name][column] for column in self.columns]
        return [" ".join(row) for row in zip(*columns, strict=True)]

    def _text_keys(self) -> dict[str, str]:
        return dict(zip(("data.text", "data.text_pair"), self.columns, strict=False))

    def token_set(self, buffer: TokenBuffer, labels: np.ndarray) -> TokenSet:
        """Texts tokenized as this run does it, with labels (N,)."""
        pad_id = self.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        return TokenSet(buffer, labels, pad_id, self.data.max_length, self.data.pad_to_multiple_of)


def build_data(config: Config) -> TextData:
    """See TaskSpec.data."""
    return TextData(config)


def read_splits(data: TextDataConfig) -> dict[str, datasets.Dataset]:
    """The splits as they come: generated, from the hub or a local copy, or from the user's files."""
    if isinstance(data, IntentsConfig):
        return intent_splits({"train": data.num_train, "val": data.num_validation, "test": data.num_test})
    if isinstance(data, StoredTextConfig):
        return load_splits(Source(data.hub_id, data.subset, data.path))
    assert isinstance(data, TextFilesConfig)
    files = {"train": data.train, "val": data.validation, "test": data.test}
    return {name: load_splits(Source(None, None, path))["train"] for name, path in files.items() if path is not None}


def check_columns(split: datasets.Dataset, name: str, wanted: Mapping[str, str]) -> None:
    """Raises: UserError: naming the key whose column a split has not."""
    for key, column in wanted.items():
        if column not in split.column_names:
            raise UserError(
                f"{key}={column}: no such column in the {name} split; {nearest(column, split.column_names)}"
            )


def arrange_splits(
    splits: dict[str, datasets.Dataset], data: TextDataConfig
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Leave out splits without labels, and hold out a validation split where there is none.

    Returns: (splits, notes for the record).
    """
    notes = [f"{name} has no labels and is left out" for name in splits if is_unlabelled(splits[name], data.label)]
    splits = {name: split for name, split in splits.items() if not is_unlabelled(split, data.label)}
    if "train" not in splits:
        raise UserError(f"data.label={data.label}: no row of the training split has a label")
    if "val" not in splits:
        train = splits["train"]
        order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(train))
        num_held_out = max(1, round(data.validation_fraction * len(train)))
        if num_held_out >= len(train):
            raise UserError("the training split has too few rows to hold out a validation split")
        splits["val"] = train.select(np.sort(order[:num_held_out]))
        splits["train"] = train.select(np.sort(order[num_held_out:]))
        notes.append(f"val is {num_held_out} rows held out of train")
    return splits, notes


def _split_facts(buffer: TokenBuffer) -> str:
    lengths = buffer.lengths
    facts = f"{len(buffer):,} texts, {len(buffer.tokens):,} tokens, median {int(np.median(lengths))}"
    return f"{facts}, longest {lengths.max()}, {buffer.num_truncated} truncated"
