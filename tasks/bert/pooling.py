"""A classifier on the mean of an encoder's last hidden states, for encoders that were trained with mean pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

# Attribute of a network's configuration: sentences of an input, each of which is averaged by itself.
NUM_POOLED = "num_pooled_sentences"


class MeanPoolingClassifier(PreTrainedModel):
    """An encoder, the mean over each sentence's tokens, and one linear layer.

    The features of a pair are (u, v, |u - v|, u * v), where u and v are the means over its two sentences, which are
    encoded together (features as in Conneau et al. 2017, arXiv 1705.02364).
    """

    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__(encoder.config)
        if getattr(encoder, "pooler", None) is not None:
            # Parameters that no output depends on would have no gradient, which DDP refuses.
            encoder.register_module("pooler", None)
        self.encoder = encoder
        self.is_pair = getattr(encoder.config, NUM_POOLED) == 2
        self.takes_types = getattr(encoder.config, "type_vocab_size", 0) > 1
        self.dropout = nn.Dropout(_classifier_dropout(encoder))
        num_outputs: int = encoder.config.num_labels  # pyright: ignore[reportAssignmentType]
        self.classifier = nn.Linear(encoder.config.hidden_size * (4 if self.is_pair else 1), num_outputs)
        nn.init.normal_(self.classifier.weight, std=getattr(encoder.config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits of texts.

        Shapes: B texts, W width, C classes. Args: input_ids (B, W) int64; attention_mask (B, W), 1 at real tokens, None
        where all are; token_type_ids (B, W), 1 at tokens of the second sentence, needed for pairs.
        Returns: logits (B, C).
        """
        types = {"token_type_ids": token_type_ids} if self.takes_types and token_type_ids is not None else {}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not self.is_pair:
            features = masked_mean(states, mask)
        else:
            if token_type_ids is None:
                raise ValueError("token_type_ids are needed for pairs of sentences")
            first, second = masked_mean(states, mask * (1 - token_type_ids)), masked_mean(states, mask * token_type_ids)
            features = torch.cat([first, second, (first - second).abs(), first * second], dim=-1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(features)))


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of states (B, W, H) over the positions where mask (B, W) is 1; 0 where there is none. Returns: (B, H)."""
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def _classifier_dropout(encoder: PreTrainedModel) -> float:
    given = getattr(encoder.config, "classifier_dropout", None)
    return given if given is not None else getattr(encoder.config, "hidden_dropout_prob", 0.0)
