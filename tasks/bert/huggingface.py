"""A trained encoder with its head as a directory that transformers loads without this project."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from tasks.bert.models import empty_network, quiet_transformers

SCORE = "score"  # name of the one output of a regression


def write_directory(
    folder: Path,
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    moments: tuple[Tensor, Tensor] | None,
) -> None:
    """Write config.json, model.safetensors and the tokenizer for AutoModelForSequenceClassification and AutoTokenizer.

    The directory appears when it is complete and replaces an older one.

    Args: config, weights: of the network. max_length: tokens that the tokenizer cuts texts to. moments: mean and
        standard deviation of the scores, which become part of the last layer; None for classes.
    """
    mapping = config.to_dict()
    mapping["problem_type"] = "single_label_classification" if moments is None else "regression"
    if moments is not None:
        mapping |= {"id2label": {0: SCORE}, "label2id": {SCORE: 0}}
    network = empty_network(mapping)
    network.load_state_dict(weights, assign=True)
    if moments is not None:
        _into_last_layer(network, *moments)
    staged = folder.with_name(f".{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)
    with quiet_transformers():
        network.save_pretrained(staged)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(staged)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)


@torch.no_grad()
def _into_last_layer(network: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Make the network's standardised score one in the units of the labels: W x + b becomes std (W x + b) + mean."""
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    # New tensors: those that are loaded are the caller's.
    last.weight = nn.Parameter(last.weight * std.cpu())
    last.bias = nn.Parameter(last.bias * std.cpu() + mean.cpu())
