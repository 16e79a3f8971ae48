"""A split's texts -> a token buffer in the cache, keyed by the texts and the tokenizer."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer.data.cache import build_once, cache_key
from trainer.data.sources import split_fingerprint
from trainer.data.texts.buffer import EncodedTexts, TokenBuffer, write_tokens
from trainer.errors import UserError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

FORMAT = 1  # of the buffer on disk; part of its key
ROWS_PER_CHUNK = 10_000


def tokenize_split(
    split: datasets.Dataset, name: str, columns: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenBuffer:
    """Tokenise a split, unless its tokens are in the cache.

    The tokenizer's own threads do it in parallel, which needs no processes that each load it again.

    Args: name: of the split, for messages. columns: one, or two for pairs. max_length: tokens, special ones included.
    Raises: UserError: a text is empty or no text.
    """
    key = cache_key(FORMAT, split_fingerprint(split), columns, tokenizer_fingerprint(tokenizer), max_length)
    chunks = _encode(split, name, columns, tokenizer, max_length)
    folder = build_once("tokens", key, lambda half: write_tokens(half, chunks, len(tokenizer)))
    buffer = TokenBuffer.open(folder)
    if buffer.num_truncated:
        share = buffer.num_truncated / len(buffer)
        log.warning("%d texts of the %s split (%.1f %%) are cut to %d tokens", buffer.num_truncated, name, 100 * share,
                    max_length)  # fmt: skip
    return buffer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that decides which tokens a text becomes: vocabulary, normalisation and special tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    # These two are left over from whatever was tokenized last.
    del state["truncation"], state["padding"]
    return json.dumps(state, sort_keys=True)


def check_texts(texts: list[Any], column: str, name: str, first_row: int) -> None:
    """Raises: UserError: naming the first row that holds no text."""
    for row, text in enumerate(texts, first_row):
        if not isinstance(text, str) or not text.strip():
            kind = "an empty text" if text is None or isinstance(text, str) else f"{type(text).__name__}, not a text"
            raise UserError(f"row {row} of the {name} split: column {column} holds {kind}", "remove or mend such rows")


def encode_texts(
    texts: list[str], pairs: list[str] | None, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedTexts:
    """Token ids of texts, or of pairs of texts, cut to max_length (of a pair, the longer one loses first)."""
    batch = tokenizer(
        texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=False
    )
    encodings = batch.encodings or []
    ids: list[list[int]] = batch["input_ids"]  # pyright: ignore[reportAssignmentType]
    starts = [len(row) for row in ids] if pairs is None else [_pair_start(encoding) for encoding in encodings]
    return EncodedTexts(ids, starts, sum(bool(encoding.overflowing) for encoding in encodings))


def _pair_start(encoding: Any) -> int:
    sequence_ids = encoding.sequence_ids
    return sequence_ids.index(1) if 1 in sequence_ids else len(sequence_ids)


def _encode(
    split: datasets.Dataset, name: str, columns: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[EncodedTexts]:
    first_row = 0
    for rows in split.select_columns(columns).iter(batch_size=ROWS_PER_CHUNK):
        texts: list[list[str]] = [rows[column] for column in columns]  # pyright: ignore[reportArgumentType, reportCallIssue]
        for column, values in zip(columns, texts, strict=True):
            check_texts(values, column, name, first_row)
        yield encode_texts(texts[0], texts[1] if len(texts) > 1 else None, tokenizer, max_length)
        first_row += len(texts[0])
