"""Texts as one flat buffer of tokens on disk: written once, mapped into memory, batches gathered in one vectorised go.

A row-wise store decodes every row of every batch of every epoch; here a sample is a slice between two offsets, and a
batch is one fancy index.
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

    ids: one list a text, special tokens included. pair_starts: position of each second sentence's first token, the
    length of the text where there is none. num_truncated: texts that were cut to the longest length allowed.
    """

    ids: list[list[int]]
    pair_starts: list[int]
    num_truncated: int


@dataclass(frozen=True)
class TokenBuffer:
    """N texts of T tokens together.

    tokens (T,) uint16 or int32, mapped from disk; offsets (N+1,) int64; pair_starts (N,) int32, see EncodedTexts.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    pair_starts: np.ndarray
    num_truncated: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, (N,) int64."""
        return np.diff(self.offsets)

    @classmethod
    def open(cls, folder: Path) -> TokenBuffer:
        """Map what `write_tokens` wrote."""
        facts = json.loads((folder / FACTS).read_text())
        tokens = np.memmap(folder / TOKENS, dtype=facts["dtype"], mode="r")
        return cls(tokens, np.load(folder / OFFSETS), np.load(folder / PAIR_STARTS), facts["num_truncated"])

    @classmethod
    def from_chunks(cls, chunks: Sequence[EncodedTexts]) -> TokenBuffer:
        """The same in memory, for texts that are read once."""
        texts = [ids for chunk in chunks for ids in chunk.ids]
        tokens = np.fromiter(chain.from_iterable(texts), dtype=np.int32)
        starts = np.fromiter(chain.from_iterable(chunk.pair_starts for chunk in chunks), dtype=np.int32)
        return cls(tokens, _offsets(map(len, texts)), starts, sum(chunk.num_truncated for chunk in chunks))


def write_tokens(folder: Path, chunks: Iterable[EncodedTexts], vocab_size: int) -> None:
    """Write chunks of texts as one buffer into an existing folder, holding one chunk in memory at a time."""
    dtype = np.dtype(np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32)
    lengths: list[int] = []
    pair_starts: list[int] = []
    num_truncated = 0
    with (folder / TOKENS).open("wb") as file:
        for chunk in chunks:
            file.write(np.fromiter(chain.from_iterable(chunk.ids), dtype=dtype).tobytes())
            lengths += [len(ids) for ids in chunk.ids]
            pair_starts += chunk.pair_starts
            num_truncated += chunk.num_truncated
    np.save(folder / OFFSETS, _offsets(lengths))
    np.save(folder / PAIR_STARTS, np.asarray(pair_starts, dtype=np.int32))
    facts = {"dtype": dtype.name, "num_texts": len(lengths), "num_tokens": sum(lengths), "num_truncated": num_truncated}
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
        """(B, W) int64, 1 at real tokens; None where all are, which lets attention take its fastest kernel."""
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
    pad_to_multiple_of but never above max_length, or always `width` where that is given.
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
        width = self._width(int(lengths.max()))
        columns = np.arange(width)
        real = columns < lengths[:, None]
        # Positions past a text read its neighbour, or the buffer's last token, and are replaced by padding.
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

    def _width(self, longest: int) -> int:
        if self.width is not None:
            return self.width
        rounded = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return max(longest, min(rounded, self.max_length))
