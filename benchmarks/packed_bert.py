"""BERT on texts laid end to end without padding, attention seeing where each begins: what `gpu_bert` compares with.

transformers does this only with the flash-attn package, which is no dependency; torch has the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, BertForSequenceClassification

from trainer.data.texts.buffer import TokenBuffer

NAME = "packed_texts"

# (queries, keys, values (T, heads, width of a head), starts (N+1,) int32, longest text, scale) -> (T, heads, width)
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]


@dataclass
class PackedTexts:
    """N texts of T tokens together. input_ids, positions (T,) int64; starts (N+1,) int32; longest: its tokens."""

    input_ids: Tensor
    positions: Tensor
    starts: Tensor
    longest: int

    @classmethod
    def of(cls, buffer: TokenBuffer, indices: np.ndarray, device: torch.device) -> PackedTexts:
        """Texts of a buffer, end to end."""
        lengths = buffer.offsets[indices + 1] - buffer.offsets[indices]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        ids = buffer.tokens[np.repeat(buffer.offsets[indices], lengths) + positions].astype(np.int64)
        tensors = (torch.from_numpy(array).to(device) for array in (ids, positions, starts.astype(np.int32)))
        return cls(*tensors, longest=int(lengths.max()))


def flash_attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """FlashAttention over texts of different lengths; CUDA and 16-bit types only."""
    from torch.nn.attention.varlen import varlen_attn

    attended = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scale)
    assert isinstance(attended, Tensor)
    return attended


def attend_one_by_one(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """The same in a loop, on any device: what the kernel is checked against."""
    bounds = starts.tolist()
    parts = []
    for start, end in pairwise(bounds):
        text = (tensor[start:end].transpose(0, 1) for tensor in (q, k, v))
        parts.append(nn.functional.scaled_dot_product_attention(*text, scale=scale).transpose(0, 1))
    return torch.cat(parts)


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    texts: PackedTexts,
    attend: Attend,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' interface of attention: (1, heads, T, width) in, (1, T, heads, width) out."""
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend(q, k, v, texts.starts, texts.longest, scaling)[None], None


AttentionInterface.register(NAME, _packed_attention)


def packed_logits(model: BertForSequenceClassification, texts: PackedTexts, attend: Attend) -> Tensor:
    """Logits (N, C) of texts end to end, the same as of padded ones. Attention has no dropout here."""
    model.set_attn_implementation(NAME)
    hidden = model.bert(
        input_ids=texts.input_ids[None], position_ids=texts.positions[None], texts=texts, attend=attend
    ).last_hidden_state[0]
    first = hidden[texts.starts[:-1].long()]
    return model.classifier(model.dropout(model.bert.pooler(first[:, None])))
