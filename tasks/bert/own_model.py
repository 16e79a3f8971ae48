"""A network of the user's own in place of an encoder: its input, and the facts it is built with."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tasks.bert.config import OwnTextModelConfig
from trainer.own_network import try_own_network
from trainer.parts import build_part, takes

TOKEN_TYPES = "token_type_ids"
EXAMPLE_TOKENS = 8


def build_own_model(
    model: OwnTextModelConfig, tokenizer: PreTrainedTokenizerBase, num_outputs: int, max_length: int, is_pair: bool
) -> nn.Module:
    """The network that the configuration names, called once to see that its output fits.

    Its forward takes input_ids and attention_mask, int64 (B, W), and for pairs token_type_ids where it names them; it
    returns logits (B, C), or scores (B, 1).

    Args: num_outputs: C. max_length: the largest W.
    Raises: UserError: it cannot be built, or its forward fails or returns something else.
    """
    facts = {
        "num_classes": num_outputs,
        "vocab_size": len(tokenizer),
        "pad_id": tokenizer.pad_token_id,
        "max_length": max_length,
    }
    network = build_part("model", model, nn.Module, facts)
    ids = torch.zeros(2, min(max_length, EXAMPLE_TOKENS), dtype=torch.int64)
    example = (ids, torch.ones_like(ids), *([ids] if own_takes_types(network, is_pair) else []))
    try_own_network(model, network, example, (2, num_outputs))
    return network


def own_takes_types(network: nn.Module, is_pair: bool) -> bool:
    """Whether a network of the user's own is given token types."""
    return is_pair and takes(network.forward, TOKEN_TYPES)
