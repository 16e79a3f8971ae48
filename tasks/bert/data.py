"""Labelled texts: read, split, tokenized once, and batched by length."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tasks.bert.config import BertConfig, EncoderConfig, IntentsConfig, OwnTextModelConfig, ScratchConfig
from tasks.bert.input_spec import InputSpec, read_tokenizer
from tasks.bert.intents import intent_splits
from tasks.bert.labels import Labels, is_unlabelled, listing
from tasks.bert.models import encoder_folder, network_config
from tasks.bert.tokenizers import build_tokenizer
from tasks.bert.weights import position_limit
from trainer.collectives import is_first_rank
from trainer.data.hold_out import HOLD_OUT_SEED
from trainer.data.module import DataModule
from trainer.data.samplers import StepSampler
from trainer.data.sources import Source, check_rows, hub_commit, load_splits, pinning_note, split_fingerprint
from trainer.data.texts.buffer import TokenBuffer, TokenSet
from trainer.data.texts.config import StoredTextConfig, TextDataConfig, TextFilesConfig, csv_format, file_kind
from trainer.data.texts.length_sampler import LengthGroupedSampler
from trainer.data.texts.tables import TEXT, TEXT_PAIR, TextColumns, arrange_columns, read_table
from trainer.data.texts.tokenization import tokenize_split
from trainer.errors import UserError
from trainer.run.init_source import source_key, source_run

if TYPE_CHECKING:
    import datasets

LARGE_UNKNOWN_SHARE = 0.1


class _Sets(dict[str, TokenSet]):
    """Sets by name, of which the training set is loaded when it is asked for."""

    def __init__(self, load_train: Callable[[], TokenSet]) -> None:
        super().__init__()
        self.load_train = load_train

    def __missing__(self, name: str) -> TokenSet:
        if name != "train":
            raise KeyError(name)
        self[name] = self.load_train()
        return self[name]


class TextData(DataModule[BertConfig]):
    """Sets of labelled texts as token buffers, with the tokenizer and the labels they were made with."""

    tokenizer: PreTrainedTokenizerBase
    labels: Labels

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.source_columns = TextColumns.of(config.data)
        self.columns = [TEXT] if self.source_columns.text_pair is None else [TEXT, TEXT_PAIR]
        self.notes: list[str] = []
        self.revision: str | None = None
        self.splits: dict[str, datasets.Dataset] = {}
        self.token_sets: dict[str, TokenSet] = _Sets(self._load_train)
        self.spec: InputSpec | None = None

    def load(self, device: torch.device) -> None:
        """See DataModule. Evaluation does not read a training file from which nothing was held out."""
        splits = self._read(read_splits(self.config.data, self._names()))
        self._note_revision(splits)
        if self.spec is None:
            train = splits["train"]
            texts = (text for column in self.columns for text in train[column])
            fingerprint = f"{split_fingerprint(train)} {self.columns}"
            self.tokenizer = self._new_tokenizer(texts, fingerprint)
            self._check_length()
        for name, split in splits.items():
            self._tokenize(name, split)
        self.sets = self.token_sets
        if self.spec is None and is_first_rank():
            self._warn()

    def _new_tokenizer(self, texts: Iterable[str], fingerprint: str) -> PreTrainedTokenizerBase:
        """The tokenizer of a run that begins; with init.from that of the weights, to which it gives their meaning.

        Raises: UserError: the vocabulary of those weights is unknown, or it is not the model's.
        """
        init, model = self.config.init, self.config.model
        if init.from_ is None and init.ckpt_path is None:
            return build_tokenizer(model, texts, fingerprint, self.config.data.max_length)
        run = source_run(init)
        if isinstance(model, ScratchConfig | OwnTextModelConfig):
            if run is not None:
                return read_tokenizer(run)
            reason = f"a file outside of a run, and the vocabulary of model={model.name} is learned by each run"
            raise UserError(f"{source_key(init)}: {reason}", "name the directory of the run that has the weights")
        tokenizer = build_tokenizer(model, texts, fingerprint, self.config.data.max_length)
        if run is not None and read_tokenizer(run).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{source_key(init)}: its run has another vocabulary than model={model.name}")
        return tokenizer

    def _note_revision(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Record at which commit a set of the hub was fetched."""
        source = stored_source(self.config.data)
        if source is not None:
            self.revision = hub_commit(splits, source)
            self.notes += [note for note in (pinning_note(source, self.revision),) if note]

    def _names(self) -> Sequence[str]:
        data = self.config.data
        is_apart = isinstance(data, TextFilesConfig) and data.validation is not None
        return ("val", "test") if self.spec is not None and is_apart else ("train", "val", "test")

    def _load_train(self) -> TokenSet:
        split = self._read(read_splits(self.config.data, ("train",)), holds_out=False)["train"]
        return self._tokenize("train", split)

    def _read(self, splits: dict[str, datasets.Dataset], holds_out: bool = True) -> dict[str, datasets.Dataset]:
        """Splits with texts and labels checked, before rows are held out, so that rows are counted as in the file."""
        data = self.config.data
        names = {name: split_name(data, name) for name in splits}
        left_out = [name for name in splits if is_unlabelled(splits[name])]
        self.notes += [f"{name} has no labels and is left out" for name in left_out]
        if "train" in left_out:
            raise UserError(f"data.label={data.label}: no row of {names['train']} has a label")
        splits = {name: split for name, split in splits.items() if name not in left_out}
        if self.spec is None:
            self.labels = Labels.of(splits["train"], names["train"], str(data.label), self.config.task.kind)
        for name, split in splits.items():
            self.labels.encode(split, names[name])
        if "train" in splits and "val" not in splits and holds_out:
            splits, note = hold_out(splits, data.validation_fraction)
            self.notes.append(note)
        return splits

    def _tokenize(self, name: str, split: datasets.Dataset) -> TokenSet:
        buffer = tokenize_split(split, self.columns, self.tokenizer, self.config.data.max_length)
        self.splits[name] = split
        self.token_sets[name] = self.token_set(buffer, self.labels.encode(split, split_name(self.config.data, name)))
        return self.token_sets[name]

    def read_input_spec(self, run_dir: Path) -> None:
        """See DataModule: labels and tokenizer are the run's, whatever the training data is now."""
        spec = InputSpec.read(run_dir)
        if spec.max_length != self.config.data.max_length:
            raise UserError(
                f"data.max_length={self.config.data.max_length}: the run was trained with {spec.max_length}"
            )
        if (spec.columns.text_pair is None) != (self.source_columns.text_pair is None):
            advice = "single texts" if spec.columns.text_pair is None else "pairs"
            raise UserError(f"data.text_pair={self.source_columns.text_pair}: the run was trained on {advice}")
        self.spec = spec
        self.labels = Labels(str(self.config.data.label), spec.label_names, "the run's")
        self.tokenizer = read_tokenizer(run_dir)

    def write_input_spec(self, run_dir: Path) -> None:
        """See DataModule."""
        names = self.labels.names
        train = self.token_sets["train"].buffer
        network = self._network()
        spec = InputSpec(
            kind=self.config.task.kind,
            columns=self.source_columns,
            csv_format=csv_format(self.config.data),
            label_names=names,
            class_counts=None if names is None else self.class_counts().tolist(),
            max_length=self.config.data.max_length,
            truncated_share=train.truncated_share,
            unknown_share=train.unknown_share,
            network=network,
        )
        spec.write(run_dir, self.tokenizer)

    def _network(self) -> dict[str, Any]:
        """The transformers configuration of the network; empty for one of the user's own."""
        model, names = self.config.model, self.labels.names
        if isinstance(model, OwnTextModelConfig):
            return {}
        config = network_config(model, self.tokenizer, len(names or [0]), names, len(self.columns) == 2)
        return json.loads(config.to_json_string(use_diff=False))

    def fingerprint(self) -> str:
        """See DataModule: of tokens, labels and splits, so the same rows in another file or format are the same."""
        digest = hashlib.sha256(json.dumps(self.labels.names).encode())
        for name, tokens in sorted(self._all_sets().items()):
            digest.update(name.encode())
            buffer = tokens.buffer
            for array in (buffer.tokens.astype(np.int32), buffer.offsets, buffer.pair_starts, tokens.labels):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def describe(self) -> Mapping[str, object]:
        """See DataModule."""
        names = self.labels.names
        facts: dict[str, object] = {name: _split_facts(tokens.buffer) for name, tokens in self._all_sets().items()}
        facts["labels"] = "scores" if names is None else f"{len(names)}, {self.labels.source}: {listing(names)}"
        if self.revision is not None:
            facts["revision"] = self.revision
        if self.notes:
            facts["notes"] = "; ".join(self.notes)
        return facts

    def train_sampler(self) -> StepSampler:
        """Global batches of similar length."""
        lengths = self.token_sets["train"].buffer.lengths
        size, pool, seed = self.config.batch.global_size, self.config.data.length_pool_batches, self.config.seed
        return LengthGroupedSampler(lengths, size, pool, seed)

    def class_counts(self) -> np.ndarray:
        """Training texts of each class, (C,) int64."""
        assert self.labels.names is not None
        return np.bincount(self.token_sets["train"].labels, minlength=len(self.labels.names))

    def joined_texts(self, name: str) -> list[str]:
        """Texts of a split; the sentences of a pair are joined by a space."""
        columns = [self.splits[name][column] for column in self.columns]
        return [" ".join(row) for row in zip(*columns, strict=True)]

    def describe_samples(self, indices: Sequence[int]) -> list[str]:
        """See DataModule: the texts."""
        rows = self.splits["train"].select(indices)
        return [" ".join(row) for row in zip(*(rows[column] for column in self.columns), strict=True)]

    def _all_sets(self) -> Mapping[str, TokenSet]:
        return {"train": self.token_sets["train"], **self.token_sets}

    def token_set(self, buffer: TokenBuffer, labels: np.ndarray) -> TokenSet:
        """Texts tokenized as this run does it, with labels (N,)."""
        pad_id = self.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        return TokenSet(buffer, labels, pad_id, self.config.data.max_length, self.config.data.pad_to_multiple_of)

    def _check_length(self) -> None:
        """The positions of an encoder on the hub are known only once it is on this machine."""
        model, length = self.config.model, self.config.data.max_length
        limit = position_limit(str(encoder_folder(model))) if isinstance(model, EncoderConfig) else None
        if limit is not None and length > limit:
            raise UserError(f"data.max_length={length}: model={model.name} takes at most {limit} tokens")

    def _warn(self) -> None:
        """Warn about texts that the model cannot read as they are."""
        for name, tokens in self.token_sets.items():
            if tokens.buffer.num_truncated:
                share, length = tokens.buffer.truncated_share, self.config.data.max_length
                _print_note(f"{share:.1%} of the {name} texts are cut to data.max_length={length} tokens")
        share = self.token_sets["train"].buffer.unknown_share
        if share > LARGE_UNKNOWN_SHARE:
            is_own = not isinstance(self.config.model, EncoderConfig)
            hint = "a larger model.vocab_size" if is_own else "model=bert_tiny, or an encoder of the texts' language"
            _print_note(f"{share:.1%} of the training tokens are unknown to model={self.config.model.name}; use {hint}")


def build_data(config: BertConfig) -> TextData:
    """See TaskSpec.data."""
    return TextData(config)


def read_splits(data: TextDataConfig, names: Sequence[str] = ("train", "val", "test")) -> dict[str, datasets.Dataset]:
    """Splits as tables: generated, from the hub or a local copy, or from the user's files.

    Args: names: of files that are read; the other sets are read as a whole.

    Raises: UserError: a file cannot be read, a column is missing, or a row has no text.
    """
    columns = TextColumns.of(data)
    if isinstance(data, TextFilesConfig):
        files = {"train": data.train, "val": data.validation, "test": data.test}
        return {name: _read_file(data, name, path, columns) for name in names if (path := files[name]) is not None}
    if isinstance(data, IntentsConfig):
        splits = intent_splits({"train": data.num_train, "val": data.num_validation, "test": data.num_test})
    else:
        source = stored_source(data)
        assert source is not None
        splits = load_splits(source)
        check_rows(splits, source)
    return {name: arrange_columns(split, columns, split_name(data, name)) for name, split in splits.items()}


def stored_source(data: TextDataConfig) -> Source | None:
    """Where a set of the hub, or its local copy, is read from; None for another kind."""
    if not isinstance(data, StoredTextConfig):
        return None
    return Source(data.hub_id, data.subset, data.path, revision=data.revision, sha256=data.sha256)


def _read_file(data: TextFilesConfig, name: str, path: str, columns: TextColumns) -> datasets.Dataset:
    place = Path(path).expanduser()
    key = FILE_KEYS[name]
    if file_kind(place) != "parquet":
        return read_table(place, key, csv_format(data), columns)
    # datasets knows the label names that it has written into the file.
    split = load_splits(Source(None, None, path, key))["train"]
    return arrange_columns(split, columns, split_name(data, name))


FILE_KEYS = {"train": "data.train", "val": "data.validation", "test": "data.test"}


def split_name(data: TextDataConfig, name: str) -> str:
    """How a message names a split."""
    if isinstance(data, TextFilesConfig):
        path = {"train": data.train, "val": data.validation, "test": data.test}[name]
        return f"{FILE_KEYS[name]}={path}"
    return f"data={data.name}: {name} split"


def hold_out(splits: dict[str, datasets.Dataset], fraction: float) -> tuple[dict[str, datasets.Dataset], str]:
    """Take a validation split from the training split. Returns: (splits, a note for the record)."""
    train = splits["train"]
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(train))
    num_held_out = max(1, round(fraction * len(train)))
    if num_held_out >= len(train):
        raise UserError("the training split has too few rows to hold out a validation split")
    held_out = train.select(np.sort(order[:num_held_out]))
    rest = train.select(np.sort(order[num_held_out:]))
    return {**splits, "train": rest, "val": held_out}, f"val is {num_held_out} rows held out of train"


def _print_note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _split_facts(buffer: TokenBuffer) -> str:
    lengths = buffer.lengths
    facts = f"{len(buffer):,} texts, {len(buffer.tokens):,} tokens, median {int(np.median(lengths))}"
    shares = f"{buffer.num_truncated} truncated ({buffer.truncated_share:.1%}), {buffer.unknown_share:.1%} unknown"
    return f"{facts}, longest {lengths.max()}, {shares}"
