"""Floating-point operations of an encoder, counted for real tokens only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.bert.models import encoder_layers

FORWARD, TRAINING = 1, 3  # the backward pass costs twice the forward pass


@dataclass(frozen=True)
class EncoderFlops:
    """FLOPs of one training step on a text of S tokens: per_token S + per_pair S^2 + per_near_pair S min(S, window).

    Per layer and forward pass: two for each weight of a matrix and token, and 4 S^2 H for attention, which is
    24 S H^2 + 4 S^2 H for BERT (Narayanan et al. 2021, appendix). Embeddings and head are left out. A layer without
    trained weights has no backward pass. Recomputation by gradient checkpointing does not count.

    window: number of tokens that a token attends to in a layer with local attention; None where no layer has it.
    """

    per_token: int
    per_pair: int
    per_near_pair: int
    window: int | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> EncoderFlops:
        """Coefficients of a model; call it after freezing and before sharding."""
        config = model.config
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        per_token = per_pair = per_near_pair = 0
        for layer, kind in zip(encoder_layers(model), kinds, strict=True):
            passes = TRAINING if any(p.requires_grad for p in layer.parameters()) else FORWARD
            per_token += 2 * passes * sum(p.numel() for p in layer.parameters() if p.ndim == 2)
            if kind == "sliding_attention":
                per_near_pair += 4 * passes * config.hidden_size
            else:
                per_pair += 4 * passes * config.hidden_size
        return cls(per_token, per_pair, per_near_pair, config.local_attention if per_near_pair else None)

    def __call__(self, lengths: Tensor) -> Tensor:
        """Sum of FLOPs over texts. Args: lengths (B,) int64, in tokens. Returns: float64 scalar."""
        tokens = lengths.to(torch.float64)
        flops = self.per_token * tokens + self.per_pair * tokens**2
        if self.window is not None:
            flops = flops + self.per_near_pair * tokens * tokens.clamp(max=self.window)
        return flops.sum()
