"""An encoder that computes no padding, for graphs that are exported.

A linear layer and a normalisation do the same to each token, so the tokens of all texts stand in one row. Attention
alone mixes tokens, within a text: it gets a padded copy of its queries, keys and values, which costs far less than
padded layers do (the layout of ByteTransformer, Zhai et al. 2022, arXiv 2210.03052).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tasks.bert.models import encoder_layers

ATTENTION = "unpadded"
LAYOUT = "layout"  # the argument of layers, which hand over to attention what they do not know
# Architectures whose layers take states, change each token by itself, and call transformers' attention interface.
ARCHITECTURES = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"})
# Added to the scores of padding. Its key is that of a token of the same text, so its share is at most exp(-60) = 1e-26
# of that token's, which float32 does not see. Minus infinity would give shares below the smallest normal number, with
# which CPUs compute slowly: onnxruntime's softmax takes three times as long.
PADDING_BIAS = -60.0


@dataclass(frozen=True)
class Layout:
    """Where tokens are, and their heads. Shapes: B texts, W width, T tokens, H heads, D of a head.

    mask: (B, W) int64, 1 at tokens. tokens: (T,), of each token its place in the flat batch. rows: (B, W), of each
    place its token; padding has a token of the same text. to_heads: (B * H * W,), of each place of each head its row
    among the heads of all tokens (T * H). from_heads: (T * H,), the other way.
    """

    mask: Tensor
    tokens: Tensor
    rows: Tensor
    to_heads: Tensor
    from_heads: Tensor

    @classmethod
    def of(cls, mask: Tensor, heads: int) -> Layout:
        """Of a mask (B, W) in which each text has a token."""
        width, head = mask.shape[1], torch.arange(heads, device=mask.device)
        flat, lengths = mask.flatten(), mask.sum(dim=1, keepdim=True)
        tokens = torch.nonzero(flat)[:, 0]
        first = lengths.cumsum(0) - lengths
        rows = torch.maximum(flat.cumsum(0).reshape(mask.shape) - 1, first)
        text = tokens // width
        from_heads = ((text * heads)[:, None] + head) * width + (tokens - text * width)[:, None]
        return cls(mask, tokens, rows, (rows[:, None, :] * heads + head[:, None]).flatten(), from_heads.flatten())

    def packed(self, states: Tensor) -> Tensor:
        """States (B, W, C) of the tokens alone: (1, T, C)."""
        return torch.index_select(states.flatten(0, 1), 0, self.tokens).unsqueeze(0)

    def padded(self, states: Tensor) -> Tensor:
        """States (1, T, C) in their texts: (B, W, C), with those of some token in the padding."""
        return torch.index_select(states.squeeze(0), 0, self.rows.flatten()).reshape(*self.mask.shape, -1)

    def padded_heads(self, states: Tensor) -> Tensor:
        """States (1, H, T, D) in their texts: (B, H, W, D)."""
        rows = states.transpose(1, 2).flatten(0, 2)
        texts, width = self.mask.shape
        return torch.index_select(rows, 0, self.to_heads).reshape(texts, states.shape[1], width, states.shape[3])

    def packed_heads(self, states: Tensor) -> Tensor:
        """States (B, H, W, D) of the tokens alone: (1, T, H, D)."""
        rows = torch.index_select(states.flatten(0, 2), 0, self.from_heads)
        return rows.reshape(1, -1, states.shape[1], states.shape[3])


def can_skip_padding(network: nn.Module) -> TypeGuard[PreTrainedModel]:
    """Whether `without_padding` knows the architecture."""
    return isinstance(network, PreTrainedModel) and network.config.model_type in ARCHITECTURES


@contextmanager
def without_padding(network: PreTrainedModel) -> Iterator[None]:
    """Let the layers of a network that `can_skip_padding` compute tokens alone.

    It is then called with attention_mask (B, W) int64 by name.
    """
    layouts: list[Layout] = []  # of the batch that is being computed

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layouts[:] = [Layout.of(kwargs["attention_mask"], network.config.num_attention_heads)]

    def pack(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (layouts[0].packed(args[0]), *args[1:])

    def add_layout(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, LAYOUT: layouts[0]}

    def pad(module: nn.Module, args: Any, output: Any) -> Any:
        return layouts[0].padded(output) if isinstance(output, Tensor) else (layouts[0].padded(output[0]), *output[1:])

    layers = encoder_layers(network)
    # All parts share one configuration, which names the attention.
    before = network.config._attn_implementation
    with ExitStack() as hooks:
        hooks.enter_context(network.register_forward_pre_hook(begin, with_kwargs=True))
        hooks.enter_context(layers[0].register_forward_pre_hook(pack))
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(add_layout, with_kwargs=True))
        hooks.enter_context(layers[-1].register_forward_hook(pad))
        network.config._attn_implementation = ATTENTION
        try:
            yield
        finally:
            network.config._attn_implementation = before


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention within each text. See AttentionInterface.

    Shapes: H heads, D of a head. Args: query, key, value: (1, H, T, D). Returns: (1, T, H, D).
    """
    query, key, value = (layout.padded_heads(states) for states in (query, key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    bias = torch.where(layout.mask.bool(), 0.0, PADDING_BIAS)[:, None, None, :]
    return layout.packed_heads(torch.softmax(scores + bias, dim=-1) @ value), None


AttentionInterface.register(ATTENTION, _attention)
