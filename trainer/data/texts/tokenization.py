"""A split's texts -> a token buffer in the cache, keyed by the texts and the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from trainer.data.cache import build_once, cache_key
from trainer.data.sources import split_fingerprint
from trainer.data.texts.buffer import EncodedTexts, TokenBuffer, write_tokens

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

FORMAT = 2  # of the buffer on disk; part of its key
ROWS_PER_CHUNK = 10_000


def tokenize_split(
    split: datasets.Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenBuffer:
    """Tokenize a split, unless its tokens are in the cache.

    The tokenizer's own threads work in parallel, which needs no processes that each load it again.

    Args: columns: one, or two for pairs; their values are texts. max_length: tokens, special tokens included.
    """
    key = cache_key(FORMAT, split_fingerprint(split), list(columns), tokenizer_fingerprint(tokenizer), max_length)
    chunks = _encode(split, columns, tokenizer, max_length)
    folder = build_once("tokens", key, lambda half: write_tokens(half, chunks, len(tokenizer)))
    return TokenBuffer.open(folder)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that decides which tokens a text becomes: vocabulary, normalisation and special tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    # These two remain from the last call.
    del state["truncation"], state["padding"]
    return json.dumps(state, sort_keys=True)


def encode_texts(
    texts: Sequence[str], pairs: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedTexts:
    """Token ids of texts, or of pairs of texts, cut to max_length; of a pair, the longer text is cut first."""
    batch = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
        # A warning for each text beyond the model's positions would repeat the count that is reported.
        verbose=False,
    )
    encodings = batch.encodings or []
    ids: list[list[int]] = batch["input_ids"]  # pyright: ignore[reportAssignmentType]
    starts = [len(row) for row in ids] if pairs is None else [_pair_start(encoding) for encoding in encodings]
    unknown = tokenizer.unk_token_id
    num_unknown = 0 if unknown is None else sum(row.count(unknown) for row in ids)  # pyright: ignore[reportArgumentType]
    return EncodedTexts(ids, starts, sum(bool(encoding.overflowing) for encoding in encodings), num_unknown)


def _pair_start(encoding: Any) -> int:
    sequence_ids = encoding.sequence_ids
    return sequence_ids.index(1) if 1 in sequence_ids else len(sequence_ids)


def _encode(
    split: datasets.Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[EncodedTexts]:
    for rows in split.select_columns(list(columns)).iter(batch_size=ROWS_PER_CHUNK):
        texts: list[list[str]] = [rows[column] for column in columns]  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield encode_texts(texts[0], texts[1] if len(texts) > 1 else None, tokenizer, max_length)
