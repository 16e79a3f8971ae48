"""Encoders with a head, through transformers; what was loaded and what was not is part of the result."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from tasks.bert.config import BertModelConfig, EncoderConfig, ScratchConfig
from tasks.bert.weights import fetch_encoder, weight_files, weights_sha256
from trainer.errors import UserError

log = logging.getLogger(__name__)

# Tensors that no encoder checkpoint brings: they belong to the task.
HEAD_PARTS = ("classifier", "pooler", "pre_classifier", "head", "score")


@dataclass(frozen=True)
class BuiltModel:
    """A model and where its numbers come from.

    sha256: of the weights file; None where there is none. loaded, initialised: names of tensors that were taken from
    the file and that started at random. unused: names in the file that the model has no place for.
    """

    model: PreTrainedModel
    sha256: str | None
    loaded: list[str]
    initialised: list[str]
    unused: list[str] = field(default_factory=list)


def build_model(
    model: BertModelConfig, tokenizer: PreTrainedTokenizerBase, num_outputs: int, label_names: list[str] | None
) -> BuiltModel:
    """The network of a run, with a new head.

    Args: num_outputs: classes, or 1 for a score. label_names: of the classes, kept in the model's own configuration.
    Raises: UserError: the weights cannot be used, or do not fit the tokenizer.
    """
    folder = encoder_folder(model)
    config = network_config(model, tokenizer, num_outputs, label_names)
    if isinstance(model, EncoderConfig) and model.pretrained and folder is not None:
        built = _from_folder(folder, config, model)
    else:
        built = _from_random(config)
    # from_pretrained leaves dropout off, and Lightning keeps each module's mode as it finds it.
    built.model.train()
    if model.gradient_checkpointing:
        built.model.gradient_checkpointing_enable({"use_reentrant": False})
    return built


def network_config(
    model: BertModelConfig, tokenizer: PreTrainedTokenizerBase, num_outputs: int, label_names: list[str] | None
) -> PreTrainedConfig:
    """The transformers configuration of a run's network, from which `empty_network` builds it without its weights.

    Args and Raises: see `build_model`.
    """
    folder = encoder_folder(model)
    config = scratch_config(model, tokenizer) if folder is None else _read_config(folder)
    _adapt(config, model, num_outputs, label_names)
    _check_vocabulary(config, tokenizer, model)
    return config


def empty_network(config: Mapping[str, Any]) -> PreTrainedModel:
    """A network by its transformers configuration as in JSON, with random weights and in evaluation mode.

    Raises: UserError: this version of transformers does not know the architecture.
    """
    try:
        loaded = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    except KeyError as error:
        raise UserError(f"the run's network has an unknown architecture: {error.args[0]}") from error
    model = AutoModelForSequenceClassification.from_config(loaded, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()


def takes_types(network: PreTrainedModel, is_pair: bool) -> bool:
    """Whether a network is given token types. All are 0 without a pair, which is the default of a network."""
    return is_pair and getattr(network.config, "type_vocab_size", 0) > 1


def encoder_folder(model: BertModelConfig) -> Path | None:
    """The directory with configuration, tokenizer and weights; None for a model of our own."""
    if not isinstance(model, EncoderConfig):
        return None
    return fetch_encoder(model.path, model.revision, model.pretrained, model.allow_pickle)


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of transformer layers, wherever the architecture keeps it."""
    wanted = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise UserError(f"{type(model).__name__} has no list of its {wanted} layers: it is no encoder of the BERT family")


def freeze(model: PreTrainedModel, embeddings: bool, num_layers: int) -> None:
    """Keep the embeddings, or the first layers, as they are. Raises: UserError: there are not that many layers."""
    layers = encoder_layers(model)
    if num_layers > len(layers):
        raise UserError(f"task.freeze_layers={num_layers}: the model has {len(layers)} layers")
    frozen = [model.base_model.get_submodule("embeddings")] if embeddings else []
    for module in [*frozen, *layers[:num_layers]]:
        module.requires_grad_(False)


def scratch_config(model: BertModelConfig, tokenizer: PreTrainedTokenizerBase) -> BertConfig:
    """A BERT of the configured size for a tokenizer's vocabulary."""
    pad_id = tokenizer.pad_token_id
    assert isinstance(model, ScratchConfig)
    assert isinstance(pad_id, int)
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=model.max_positions,
        pad_token_id=pad_id,
    )


def _read_config(folder: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={folder}: its config.json cannot be read", _sentence(error)) from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _adapt(config: PreTrainedConfig, model: BertModelConfig, num_outputs: int, label_names: list[str] | None) -> None:
    config.num_labels = num_outputs
    if label_names is not None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: number for number, name in enumerate(label_names)}
    config._attn_implementation = "sdpa"
    if isinstance(model, EncoderConfig) and model.num_layers is not None:
        if model.num_layers > config.num_hidden_layers:
            advice = f"the model has {config.num_hidden_layers} layers"
            raise UserError(f"model.num_layers={model.num_layers}: {advice}")
        config.num_hidden_layers = model.num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: model.num_layers]
    if model.dropout is not None:
        for name in [name for name in config.to_dict() if "dropout" in name]:
            setattr(config, name, model.dropout)


def _check_vocabulary(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, model: BertModelConfig) -> None:
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        lack = f"token ids go up to {largest}, the model has embeddings for {config.vocab_size}"
    elif config.pad_token_id not in (None, tokenizer.pad_token_id):
        lack = f"it pads with token {tokenizer.pad_token_id}, the model with {config.pad_token_id}"
    else:
        return
    raise UserError(f"model.path={getattr(model, 'path', None)}: its tokenizer does not fit the model", lack)


def _from_random(config: PreTrainedConfig) -> BuiltModel:
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return BuiltModel(model, None, [], sorted(model.state_dict()))


def _from_folder(folder: Path, config: PreTrainedConfig, model: EncoderConfig) -> BuiltModel:
    files = weight_files(folder, model.allow_pickle)
    sha256 = weights_sha256(files)
    if model.sha256 is not None and sha256 != model.sha256:
        raise UserError(
            f"model.sha256={model.sha256}: {', '.join(map(str, files))} is another file", f"it hashes to {sha256}"
        )
    try:
        with _quiet():
            network, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=files[0].suffix == ".safetensors",
                trust_remote_code=False,
                local_files_only=True,
                # A head for other classes is new like any other head.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.path={model.path}: its weights cannot be loaded", _sentence(error)) from error
    mismatched = [str(entry[0]) for entry in info["mismatched_keys"]]
    initialised = sorted({*info["missing_keys"], *mismatched})
    loaded = sorted(name for name in network.state_dict() if name not in initialised)
    _check_encoder_loaded(initialised, model)
    return BuiltModel(network, sha256, loaded, initialised, sorted(info["unexpected_keys"]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Head tensors are always new, and transformers would say so in its own words beside ours; and no bar."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _check_encoder_loaded(initialised: list[str], model: EncoderConfig) -> None:
    """Weights of another architecture leave the encoder at random without an error of transformers."""
    foreign = [name for name in initialised if not any(part in HEAD_PARTS for part in name.split("."))]
    if foreign:
        raise UserError(
            f"model.path={model.path}: its weights lack {len(foreign)} tensors of the encoder, such as {foreign[0]}",
            "the weights are of another model; model.pretrained=false starts from random ones",
        )


def announce(built: BuiltModel, model: BertModelConfig) -> None:
    """A model that knows nothing yet must not be taken for a pretrained one: to the terminal and the log."""
    if built.sha256 is None:
        hint = (
            "" if isinstance(model, EncoderConfig) else "; model=bert_base or model=minilm start from pretrained ones"
        )
        message = f"model={model.name} STARTS FROM RANDOM WEIGHTS{hint}"
        print(f"note: {message}", file=sys.stderr)
        log.warning(message)
    else:
        log.warning("newly initialised: %s", ", ".join(built.initialised))


def describe(built: BuiltModel) -> dict[str, Any]:
    """What belongs into a run's record."""
    return {
        "weights_sha256": built.sha256,
        "starts_from_random_weights": built.sha256 is None,
        "num_loaded_tensors": len(built.loaded),
        "newly_initialised": built.initialised if built.sha256 is not None else "all",
        "unused_in_file": built.unused,
        "transformers_config": built.model.config.to_diff_dict(),
    }
