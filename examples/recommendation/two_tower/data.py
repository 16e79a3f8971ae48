"""Pairs of a history and the item that came next, from interactions in time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from examples.recommendation.files import Interactions, read_folder
from trainer.data.batch import MicroBatch
from trainer.data.module import DataModule
from trainer.errors import UserError

from .config import TwoTowerRun
from .network import build_tokenizer, encoder_config, padded, token_ids

SPEC_FILE, TOKENIZER_DIR = "inputs.json", "tokenizer"


@dataclass
class PairBatch(MicroBatch):
    """B pairs whose U different items come once.

    input_ids, attention_mask (U, W) int64; history (B, H) int64 and targets (B,) int64: rows of input_ids, -1 where a
    history is shorter; history_items (B, H) and target_items (B,) int64: the same as numbers of items.
    """

    input_ids: Tensor
    attention_mask: Tensor
    history: Tensor
    targets: Tensor
    history_items: Tensor
    target_items: Tensor


@dataclass(frozen=True)
class Pairs:
    """N pairs. history (N, H) int64 numbers of items, latest last, -1 before a shorter one; targets (N,) int64.

    tokens: token ids of each item. pad_id: of the padding.
    """

    history: np.ndarray
    targets: np.ndarray
    tokens: Sequence[Sequence[int]]
    pad_id: int

    def __len__(self) -> int:
        return len(self.targets)

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> PairBatch:
        """See Gatherable."""
        history, targets = self.history[indices], self.targets[indices]
        items = np.unique(np.concatenate([history[history >= 0], targets]))
        ids, mask = padded([self.tokens[item] for item in items], self.pad_id)
        rows = np.where(history >= 0, np.searchsorted(items, history), -1)
        return PairBatch(
            indices=torch.from_numpy(indices),
            num_valid=num_valid,
            epoch=epoch,
            input_ids=ids,
            attention_mask=mask,
            history=torch.from_numpy(rows),
            targets=torch.from_numpy(np.searchsorted(items, targets)),
            history_items=torch.from_numpy(history),
            target_items=torch.from_numpy(targets),
        )


def pairs_between(
    interactions: Interactions, start: float, end: float, max_history: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose target is at a time in [start, end) and whose history is earlier, by user and time.

    Args: interactions: ordered by user and time. start, end: seconds.
    Returns: history (N, max_history) int64, -1 where it is shorter; targets (N,) int64.
    """
    users, items, times = interactions.users, interactions.items, interactions.times
    history = np.full((len(items), max_history), -1)
    for age in range(1, min(max_history, len(items) - 1) + 1):
        same = np.flatnonzero(users[age:] == users[:-age]) + age
        history[same, -age] = items[same - age]
    chosen = (times >= start) & (times < end) & (history[:, -1] >= 0)
    return history[chosen], items[chosen]


class HistoriesData(DataModule[TwoTowerRun]):
    """Training and validation pairs, and the tokenizer of the item texts."""

    tokenizer: PreTrainedTokenizerFast | None = None
    train: Pairs

    def load(self, device: torch.device) -> None:
        """See DataModule."""
        data = self.config.data
        catalogue = read_folder(Path(data.folder))
        if self.tokenizer is None:
            self.tokenizer = build_tokenizer(self.config.model, catalogue.texts)
        tokens = token_ids(self.tokenizer, catalogue.texts, data.max_length)
        pad_id = self.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        interactions = catalogue.interactions
        train = pairs_between(interactions, 0.0, data.train_before, data.max_history)
        val = pairs_between(interactions, data.train_before, data.validate_before, data.max_history)
        if not len(train[1]) or not len(val[1]):
            few = "training" if not len(train[1]) else "validation"
            raise UserError(
                f"data.train_before={data.train_before}: no {few} pair of two interactions of one user",
                "set it, and data.validate_before, to other times",
            )
        thinned = np.linspace(0, len(val[1]) - 1, min(len(val[1]), data.max_validation)).astype(int)
        self.train = Pairs(*train, tokens, pad_id)
        self.sets = {"train": self.train, "val": Pairs(val[0][thinned], val[1][thinned], tokens, pad_id)}

    def item_shares(self) -> np.ndarray:
        """Share of the training pairs whose target is an item, (items,) float64; an item without one counts once."""
        counts = np.bincount(self.train.targets, minlength=len(self.train.tokens))
        return np.maximum(counts, 1) / len(self.train)

    def write_input_spec(self, run_dir: Path) -> None:
        """See DataModule."""
        assert self.tokenizer is not None
        self.tokenizer.save_pretrained(run_dir / TOKENIZER_DIR)
        network = encoder_config(self.config.model, len(self.tokenizer))
        (run_dir / SPEC_FILE).write_text(network.to_json_string(use_diff=False), encoding="utf-8")

    def read_input_spec(self, run_dir: Path) -> None:
        """See DataModule: the vocabulary is the run's, whatever the texts are now."""
        self.tokenizer, _ = read_spec(run_dir)

    def fingerprint(self) -> str:
        """See DataModule."""
        digest = hashlib.sha256(json.dumps(self.train.tokens).encode())
        for pairs in self.sets.values():
            assert isinstance(pairs, Pairs)
            digest.update(pairs.history.tobytes() + pairs.targets.tobytes())
        return digest.hexdigest()


def read_spec(run_dir: Path) -> tuple[PreTrainedTokenizerFast, dict[str, object]]:
    """Tokenizer and transformers configuration of a run. Raises: UserError: one of them is missing or damaged."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(run_dir / TOKENIZER_DIR, local_files_only=True)
        return tokenizer, json.loads((run_dir / SPEC_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"run={run_dir}: no readable {SPEC_FILE} or {TOKENIZER_DIR}/") from error


def build_data(config: TwoTowerRun) -> HistoriesData:
    """See TaskSpec.data."""
    return HistoriesData(config)
