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


@dataclass(frozen=True)
class Layout:
    """Where tokens are. Shapes: B texts, W width, T tokens.

    mask: (B, W) int64, 1 at tokens. tokens: (T,), of each token its place in the flat batch. rows: (B * W,), of each
    place its token, and of padding any token.
    """

    mask: Tensor
    tokens: Tensor
    rows: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Layout:
        """Of a mask (B, W) that has a token."""
        flat = mask.flatten()
        return cls(mask, torch.nonzero(flat)[:, 0], (flat.cumsum(0) - 1).clamp(min=0))

    def packed(self, states: Tensor) -> Tensor:
        """States (B, W, ...) of the tokens alone: (1, T, ...)."""
        return states.flatten(0, 1)[self.tokens][None]

    def padded(self, states: Tensor) -> Tensor:
        """States (1, T, ...) in their texts: (B, W, ...), with any values in the padding."""
        return states[0][self.rows].unflatten(0, self.mask.shape)


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
        layouts[:] = [Layout.of(kwargs["attention_mask"])]

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
    query, key, value = (layout.padded(states.transpose(1, 2)).transpose(1, 2) for states in (query, key, value))
    mask = layout.mask.bool()[:, None, None, :]
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return layout.packed(mixed.transpose(1, 2)), None


AttentionInterface.register(ATTENTION, _attention)
