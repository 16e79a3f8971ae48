"""Which weights are hidden matrices: what Muon is meant for (Jordan 2024, https://kellerjordan.github.io/posts/muon/)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def find_outer_layers(network: nn.Module) -> list[nn.Module]:
    """The first and the last layer with a weight matrix, in the order in which the network registers its layers."""
    layers = [
        layer for layer in network.modules() if any(weight.ndim >= 2 for weight in layer.parameters(recurse=False))
    ]
    return [layers[0], layers[-1]] if layers else []


def hidden_weights(network: nn.Module, outer_layers: Iterable[nn.Module]) -> set[nn.Parameter]:
    """Matrices and convolution kernels that are neither in an embedding nor in an input or output layer."""
    outside = [*outer_layers, *(layer for layer in network.modules() if isinstance(layer, EMBEDDINGS))]
    excluded = {weight for layer in outside for weight in layer.parameters()}
    return {weight for weight in network.parameters() if weight.ndim >= 2} - excluded
