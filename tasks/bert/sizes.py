"""Sizes of an encoder for `plan`, by arithmetic, since importing transformers takes seconds."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.bert.config import (
    BertConfig,
    BertModelConfig,
    EncoderConfig,
    IntentsConfig,
    OwnTextModelConfig,
    ScratchConfig,
    TextModelConfig,
)
from tasks.bert.grammar import PHRASINGS
from tasks.bert.weights import local_folder, model_config, sentence_pooling
from trainer.estimate.memory import FLOAT32, ModelSizes

# Of config.json, in the order of the fields of _Shape.
SHAPE_KEYS = ("vocab_size", "max_position_embeddings", "num_hidden_layers", "hidden_size", "intermediate_size")
TOKEN_TYPES = 2


@dataclass(frozen=True)
class _Shape:
    """An encoder of the BERT family.

    vocab: word pieces. width: of a token. inner: of the feed-forward network. is_averaged: pooled by mean.
    """

    vocab: int
    positions: int
    layers: int
    width: int
    inner: int
    is_averaged: bool = False

    def head(self, outputs: int, is_pair: bool) -> int:
        """A pooler and a linear layer, or one linear layer on means; see MeanPoolingClassifier."""
        if self.is_averaged:
            return ((4 if is_pair else 1) * self.width + 1) * outputs
        return (self.width + 1) * (self.width + outputs)

    @property
    def embeddings(self) -> int:
        """Words, positions, types and their normalisation."""
        return (self.vocab + self.positions + TOKEN_TYPES + 2) * self.width

    @property
    def layer(self) -> int:
        """Four projections of attention, two matrices between, each with a bias, and two normalisations."""
        attention = 4 * (self.width + 1) * self.width
        feed_forward = (self.width + 1) * self.inner + (self.inner + 1) * self.width
        return attention + feed_forward + 4 * self.width


def sizes(config: BertConfig) -> ModelSizes | None:
    """See TaskSpec.sizes. Activations are those of a text of data.max_length tokens."""
    task, model, data = config.task, config.model, config.data
    shape = _shape(model)
    if shape is None or isinstance(model, OwnTextModelConfig):
        return None
    known = isinstance(data, IntentsConfig)
    outputs = 1 if task.kind == "regression" else len(PHRASINGS) if known else TOKEN_TYPES
    head = shape.head(outputs, data.text_pair is not None)
    count = shape.embeddings + shape.layers * shape.layer + head
    frozen = (shape.embeddings if task.freeze_embeddings else 0) + task.freeze_layers * shape.layer
    notes = [] if known or task.kind == "regression" else [f"counted with {outputs} classes until the labels are read"]
    if isinstance(model, ScratchConfig):
        notes.append("the vocabulary is trained on the data and may be smaller")
    activations = _activation_elements(shape, data.max_length, model, task.freeze_layers) * FLOAT32
    return ModelSizes({"model": count}, count - frozen, activations, data.num_train if known else None, tuple(notes))


def _shape(model: TextModelConfig) -> _Shape | None:
    """From the configuration, or from config.json of a local BERT; None for any other architecture."""
    if isinstance(model, ScratchConfig):
        return _Shape(
            model.vocab_size,
            model.max_positions,
            model.num_layers,
            model.hidden_size,
            model.intermediate_size,
            model.pooling == "mean",
        )
    if not isinstance(model, EncoderConfig):
        return None
    folder = local_folder(model.path)
    if folder is None or not (folder / "config.json").is_file():
        return None
    values = model_config(folder)
    numbers = [values.get(name) for name in SHAPE_KEYS]
    if values.get("model_type") != "bert" or not all(type(number) is int and number > 0 for number in numbers):
        return None  # what does not fit is refused when the model is built
    vocab_size, positions, layers, width, inner = (int(number or 0) for number in numbers)
    return _Shape(
        vocab_size,
        positions,
        model.num_layers or layers,
        width,
        inner,
        (model.pooling or sentence_pooling(folder)) == "mean",
    )


def _activation_elements(shape: _Shape, tokens: int, model: BertModelConfig, frozen_layers: int) -> int:
    """float32 elements kept for one text, without the attention matrix, which fused attention recomputes.

    Per token and layer, what transformers' BERT keeps, as counted by saved_bytes: eight tensors of a token's width
    around attention and normalisation, two dropout masks, and the inner layer before and after its activation.
    """
    per_token = shape.width if model.gradient_checkpointing else 10 * shape.width + 2 * shape.inner
    return tokens * ((shape.layers - frozen_layers) * per_token + 3 * shape.width)
