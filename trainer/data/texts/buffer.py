"""Texts as one flat buffer of tokens on disk: written once, mapped into memory, gathered by vectorised indexing.

A row-wise store decodes every row of every batch in every epoch. Here a sample is a slice between two offsets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data.batch import MicroBatch

TOKENS, OFFSETS, PAIR_STARTS, FACTS = "tokens.bin", "offsets.npy", "pair_starts.npy", "buffer.json"


@dataclass(frozen=True)
class EncodedTexts:
    """Some texts as token ids.

    ids: one list for each text, special tokens included. pair_starts: position of each second sentence's first token;
    the length of the text where there is none. num_truncated: texts that were cut to the longest length allowed.
    num_unknown: tokens that stand for what the vocabulary does not have.
    """

    ids: list[list[int]]
    pair_starts: list[int]
    num_truncated: int
    num_unknown: int = 0


@dataclass(frozen=True)
class TokenBuffer:
    """N texts of T tokens together.

    tokens (T,) uint16 or int32, mapped from disk; offsets (N+1,) int64; pair_starts (N,) int32 and the counts: see
    EncodedTexts.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    pair_starts: np.ndarray
    num_truncated: int
    num_unknown: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def truncated_share(self) -> float:
        """Share of texts that were cut."""
        return self.num_truncated / len(self)

    @property
    def unknown_share(self) -> float:
        """Share of tokens that the vocabulary does not have."""
        return self.num_unknown / max(1, len(self.tokens))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, (N,) int64."""
        return np.diff(self.offsets)

    @classmethod
    def open(cls, folder: Path) -> TokenBuffer:
        """Map what `write_tokens` wrote."""
        facts = json.loads((folder / FACTS).read_text())
        tokens = np.memmap(folder / TOKENS, dtype=facts["dtype"], mode="r")
        counts = facts["num_truncated"], facts["num_unknown"]
        return cls(tokens, np.load(folder / OFFSETS), np.load(folder / PAIR_STARTS), *counts)

    @classmethod
    def from_chunks(cls, chunks: Sequence[EncodedTexts]) -> TokenBuffer:
        """A buffer in memory, for texts that are read once."""
        texts = [ids for chunk in chunks for ids in chunk.ids]
        tokens = np.fromiter(chain.from_iterable(texts), dtype=np.int32)
        starts = np.fromiter(chain.from_iterable(chunk.pair_starts for chunk in chunks), dtype=np.int32)
        num_truncated, num_unknown = (sum(c.num_truncated for c in chunks), sum(c.num_unknown for c in chunks))
        return cls(tokens, _offsets(map(len, texts)), starts, num_truncated, num_unknown)


def write_tokens(folder: Path, chunks: Iterable[EncodedTexts], vocab_size: int) -> None:
    """Write chunks of texts as one buffer into an existing folder, with one chunk in memory at a time."""
    dtype = np.dtype(np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32)
    lengths: list[int] = []
    pair_starts: list[int] = []
    num_truncated = num_unknown = 0
    with (folder / TOKENS).open("wb") as file:
        for chunk in chunks:
            file.write(np.fromiter(chain.from_iterable(chunk.ids), dtype=dtype).tobytes())
            lengths += [len(ids) for ids in chunk.ids]
            pair_starts += chunk.pair_starts
            num_truncated += chunk.num_truncated
            num_unknown += chunk.num_unknown
    np.save(folder / OFFSETS, _offsets(lengths))
    np.save(folder / PAIR_STARTS, np.asarray(pair_starts, dtype=np.int32))
    facts = {"dtype": dtype.name, "num_truncated": num_truncated, "num_unknown": num_unknown}
    (folder / FACTS).write_text(json.dumps(facts, indent=1))


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    return np.fromiter(accumulate(lengths, initial=0), dtype=np.int64)


@dataclass
class TokenBatch(MicroBatch):
    """Texts padded to a common width; masks follow from lengths, so only those travel to the device.

    Shapes: B texts, W width. input_ids (B, W) int64, padded on the right; lengths (B,) int64, real tokens;
    pair_starts (B,) int64, see EncodedTexts; labels (B,) int64 classes or float32 scores; is_full: nothing is padded.
    """

    input_ids: Tensor
    lengths: Tensor
    pair_starts: Tensor
    labels: Tensor
    is_full: bool

    def attention_mask(self) -> Tensor | None:
        """(B, W) int64, 1 at real tokens; None without padding, which lets attention use its fastest kernel."""
        return None if self.is_full else (self._columns() < self.lengths[:, None]).long()

    def token_type_ids(self) -> Tensor:
        """(B, W) int64, 1 at tokens of the second sentence."""
        return ((self._columns() >= self.pair_starts[:, None]) & (self._columns() < self.lengths[:, None])).long()

    def _columns(self) -> Tensor:
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device)


@dataclass(frozen=True)
class TokenSet:
    """A `Gatherable` of labelled texts.

    labels (N,) int64 classes or float32 scores. A batch is as wide as its longest text, rounded up to a multiple of
    pad_to_multiple_of but never above max_length; or `width` tokens where that is given.
    """

    buffer: TokenBuffer
    labels: np.ndarray
    pad_id: int
    max_length: int
    pad_to_multiple_of: int = 1
    width: int | None = None

    def __len__(self) -> int:
        return len(self.buffer)

    def gather(self, indices: np.ndarray, num_valid: int, epoch: int) -> TokenBatch:
        """See Gatherable."""
        starts = self.buffer.offsets[indices]
        lengths = self.buffer.offsets[indices + 1] - starts
        width = self.batch_width(int(lengths.max()))
        columns = np.arange(width)
        real = columns < lengths[:, None]
        # Positions beyond a text read the next text, or the buffer's last token, and are replaced by padding.
        taken = self.buffer.tokens.take(starts[:, None] + columns, mode="clip")
        input_ids = np.where(real, taken, self.pad_id).astype(np.int64)
        return TokenBatch(
            indices=torch.from_numpy(indices),
            num_valid=num_valid,
            epoch=epoch,
            input_ids=torch.from_numpy(input_ids),
            lengths=torch.from_numpy(lengths),
            pair_starts=torch.from_numpy(self.buffer.pair_starts[indices].astype(np.int64)),
            labels=torch.from_numpy(self.labels[indices]),
            is_full=bool(real.all()),
        )

    def batch_width(self, longest: int) -> int:
        """The width of a batch, in tokens. Args: longest: tokens of its longest text."""
        if self.width is not None:
            return self.width
        rounded = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return max(longest, min(rounded, self.max_length))
