"""The tokenizer of a run: the encoder's own, or a WordPiece vocabulary learnt from the training split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from tasks.bert.config import BertModelConfig, ScratchConfig
from tasks.bert.models import encoder_folder
from trainer.data.cache import build_once, cache_key
from trainer.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FORMAT = 1  # of a learnt vocabulary; part of its key


def build_tokenizer(model: BertModelConfig, texts: Iterable[str], fingerprint: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args: texts: of the training split, read only where a vocabulary has to be learnt. fingerprint: of those texts.
    Raises: UserError: the model's tokenizer cannot be used.
    """
    if isinstance(model, ScratchConfig):
        key = cache_key(FORMAT, fingerprint, model.vocab_size, model.max_positions)
        folder = build_once("vocabularies", key, lambda half: _learn(texts, model, half))
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
    """WordPiece vocabulary of lower-cased texts; the same texts always give the same one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    texts = list(texts)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    normalizer = tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers characters in the order of a hash table, which differs from process to process and decides
    # ties between merges; characters that it is given beforehand keep their numbers.
    characters = sorted(set(normalizer.normalize_str(" ".join(texts))) - {" "})
    known = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(known)), special_tokens=known, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def _learn(texts: Iterable[str], model: ScratchConfig, folder: Path) -> None:
    vocabulary = learn_vocabulary(texts, model.vocab_size)
    BertTokenizer(vocab=vocabulary, model_max_length=model.max_positions).save_pretrained(folder)
