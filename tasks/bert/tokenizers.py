"""The tokenizer of a run: the encoder's own, or a WordPiece vocabulary learned from the training split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from tasks.bert.config import OwnTextModelConfig, ScratchConfig, TextModelConfig
from tasks.bert.models import encoder_folder
from trainer.data.cache import build_once, cache_key
from trainer.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INNER = "##"  # WordPiece's mark of a piece that does not begin a word
FORMAT = 2  # of a learned vocabulary; part of its key


def build_tokenizer(
    model: TextModelConfig, texts: Iterable[str], fingerprint: str, max_length: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args: texts: of the training split, read only where a vocabulary has to be learned. fingerprint: of those texts.
        max_length: tokens, for a network of the user's own.
    Raises: UserError: the model's tokenizer cannot be used.
    """
    if isinstance(model, ScratchConfig | OwnTextModelConfig):
        longest = model.max_positions if isinstance(model, ScratchConfig) else max_length
        key = cache_key(FORMAT, fingerprint, model.vocab_size, longest)
        folder = build_once("vocabularies", key, lambda half: _learn(texts, model.vocab_size, longest, half))
        return load_tokenizer(folder)
    folder = encoder_folder(model)
    assert folder is not None
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory. Raises: UserError: it cannot be read, or has no padding token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: its tokenizer cannot be read", reason) from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        lack = "padding token" if tokenizer.is_fast else "tokenizer.json"
        raise UserError(f"{folder}: its tokenizer has no {lack}, so it is none of the BERT family")
    return tokenizer


def learn_vocabulary(texts: Iterable[str], vocab_size: int) -> dict[str, int]:
    """WordPiece vocabulary of lower-cased texts, of at most vocab_size pieces; it does not depend on their order.

    tokenizers' trainer takes each character both as a beginning and as an inner piece, whatever vocab_size is. Chinese
    has thousands, each a word of its own, so the vocabulary became too large and half of it was never used. Here
    pieces that no text can produce are left out, and the rarest characters where there is no room for all.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    texts = list(texts)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts = _count_characters(texts, tokenizer)
    characters = sorted({piece.removeprefix(INNER) for piece in counts})
    # The trainer numbers characters in the order of a hash table, which differs between processes and decides ties
    # between merges; characters that it is given as special tokens keep their numbers.
    known = [*SPECIAL_TOKENS, *characters, *(INNER + character for character in characters)]
    num_unreachable = 2 * len(characters) - len(counts)
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size + num_unreachable, len(known)),
        special_tokens=known,
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = tokenizer.get_vocab()
    room = vocab_size - len(SPECIAL_TOKENS)
    frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))[:room]
    merges = sorted(learned.keys() - set(known), key=learned.__getitem__)
    pieces = [*SPECIAL_TOKENS, *sorted(frequent), *merges][:vocab_size]
    return {piece: number for number, piece in enumerate(pieces)}


def _count_characters(texts: Sequence[str], tokenizer: Any) -> Counter[str]:
    """How often each character begins a word, or is inside of one with INNER before it."""
    counts: Counter[str] = Counter()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            counts[word[0]] += 1
            counts.update(INNER + character for character in word[1:])
    return counts


def _learn(texts: Iterable[str], vocab_size: int, max_length: int, folder: Path) -> None:
    vocabulary = learn_vocabulary(texts, vocab_size)
    BertTokenizer(vocab=vocabulary, model_max_length=max_length).save_pretrained(folder)
