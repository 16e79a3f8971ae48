"""The text encoder of both towers, and its tokenizer."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, PreTrainedConfig, PreTrainedTokenizerFast

from trainer.errors import UserError

from .config import PretrainedTowerConfig, TinyTowerConfig, TowerConfig

PACKAGE = "package://"
PAD, UNKNOWN, FIRST, LAST = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class ItemTower(nn.Module):
    """Texts to vectors of length 1: the mean of the encoder's last states."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Shapes: input_ids, attention_mask (B, W) int64, 1 at real tokens. Returns: (B, D) float32."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        weights = attention_mask[..., None].float()
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


class TwoTowers(nn.Module):
    """Pairs of a history and an item to a user vector and an item vector. A user is the mean of the history's items."""

    def __init__(self, items: ItemTower) -> None:
        super().__init__()
        self.items = items

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, history: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors of B pairs whose U different items are encoded once.

        Args: input_ids, attention_mask (U, W) int64. history (B, H) int64: rows of input_ids, -1 where a history is
            shorter. targets (B,) int64: rows of input_ids.
        Returns: users (B, D), items (B, D), each row of length 1.
        """
        vectors = self.items(input_ids, attention_mask)
        present = (history >= 0).float()[..., None]
        users = F.normalize((vectors[history.clamp(min=0)] * present).sum(1), dim=1)
        return users, vectors[targets]


def build_towers(config: PreTrainedConfig, model: TowerConfig) -> TwoTowers:
    """The network of a new run. Args: config: of `encoder_config`."""
    if isinstance(model, PretrainedTowerConfig):
        encoder = AutoModel.from_pretrained(
            encoder_folder(model.path), config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    else:
        encoder = AutoModel.from_config(config, dtype=torch.float32)
    return TwoTowers(without_pooler(encoder)).train()


def without_pooler(encoder: nn.Module) -> ItemTower:
    """The tower of an encoder. No vector depends on a pooler, and DDP refuses parameters without a gradient."""
    if hasattr(encoder, "pooler"):
        encoder.register_module("pooler", None)
    return ItemTower(encoder)


def encoder_config(model: TowerConfig, num_tokens: int) -> PreTrainedConfig:
    """The transformers configuration of the encoder, without dropout: both passes of a step must agree.

    Args: num_tokens: entries of the vocabulary.
    """
    if isinstance(model, PretrainedTowerConfig):
        config = AutoConfig.from_pretrained(encoder_folder(model.path), local_files_only=True)
        config.num_hidden_layers = min(model.num_layers, config.num_hidden_layers)
    else:
        assert isinstance(model, TinyTowerConfig)
        config = BertConfig(
            vocab_size=num_tokens,
            hidden_size=model.hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            intermediate_size=4 * model.hidden_size,
        )
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return config


def encoder_folder(path: str) -> Path:
    """The directory of an encoder. Raises: UserError: there is none."""
    folder = Path(path).expanduser()
    if path.startswith(PACKAGE):
        package, _, inner = path.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        folder = Path(spec.origin).parent / inner if spec and spec.origin else Path(package)
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path={path}: no encoder there", "model=tower_tiny needs none")
    return folder


def build_tokenizer(model: TowerConfig, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a new run: the encoder's own, or whole words of the texts, the most frequent ones first."""
    if isinstance(model, PretrainedTowerConfig):
        return AutoTokenizer.from_pretrained(encoder_folder(model.path), local_files_only=True)
    assert isinstance(model, TinyTowerConfig)
    split, lower = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=True)
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(lower.normalize_str(text)))
    # By count, then by letters: the same on every rank.
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    words = list(dict.fromkeys([PAD, UNKNOWN, FIRST, LAST, *frequent]))[: model.vocab_size]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, split
    tokenizer.post_processor = processors.BertProcessing((LAST, words.index(LAST)), (FIRST, words.index(FIRST)))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, cls_token=FIRST, sep_token=LAST
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included."""
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return ids


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of texts as a batch. Returns: input_ids, attention_mask (B, W) int64."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) < lengths[:, None]).long()
