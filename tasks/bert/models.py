"""Encoders with a classification or regression head, loaded through transformers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from tasks.bert.config import BertModelConfig, EncoderConfig, Pooling, ScratchConfig
from tasks.bert.pooling import NUM_POOLED, MeanPoolingClassifier
from tasks.bert.weights import fetch_encoder, hub_commit, sentence_pooling, weight_files, weights_sha256
from trainer.errors import UserError

log = logging.getLogger(__name__)

# Parts of a tensor's name that mark the head, which encoder checkpoints do not contain.
HEAD_PARTS = ("classifier", "pooler", "pre_classifier", "head", "score")
# Attribute of configurations whose architecture can pool by cls and by mean itself, such as ModernBERT's.
NATIVE_POOLING = "classifier_pooling"


@dataclass(frozen=True)
class BuiltModel:
    """A model and the origin of its weights.

    pooling: how the states of tokens become one vector; see BertModelConfig. sha256: of the weights file; None for
    random weights. loaded, initialised: names of tensors that were read from the file, and of those that start at
    random. unused: names in the file that the model does not have. revision: commit of an encoder of the hub.
    """

    model: PreTrainedModel
    pooling: Pooling
    sha256: str | None
    loaded: list[str]
    initialised: list[str]
    unused: list[str] = field(default_factory=list)
    revision: str | None = None


def build_model(
    model: BertModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    num_outputs: int,
    label_names: list[str] | None,
    is_pair: bool = False,
) -> BuiltModel:
    """The network of a run, with a new head.

    With pooling by mean it is a MeanPoolingClassifier, unless the architecture itself can pool by mean. Otherwise it is
    the architecture's own, which AutoModelForSequenceClassification loads.

    Args: num_outputs: classes, or 1 for a score. label_names: of the classes, stored in the network's configuration.
    is_pair: whether the inputs are pairs of sentences.
    Raises: UserError: the weights cannot be used, or do not fit the tokenizer or model.pooling.
    """
    folder = encoder_folder(model)
    config = network_config(model, tokenizer, num_outputs, label_names, is_pair)
    has_mean_head = hasattr(config, NUM_POOLED)
    kind = AutoModel if has_mean_head else AutoModelForSequenceClassification
    if isinstance(model, EncoderConfig) and model.pretrained and folder is not None:
        built = _from_folder(folder, config, model, kind)
    else:
        built = _from_random(config, kind)
    if has_mean_head:
        built = _with_mean_head(built)
    elif hasattr(config, NATIVE_POOLING):
        built = replace(built, pooling=getattr(config, NATIVE_POOLING))
    else:
        built = _with_pooler(built, model.pooling, _named_pooling(model, folder))
    if folder is not None:
        built = replace(built, revision=hub_commit(folder))
    # from_pretrained leaves the model in evaluation mode, and Lightning keeps each module's mode as it finds it.
    built.model.train()
    if model.gradient_checkpointing:
        built.model.gradient_checkpointing_enable({"use_reentrant": False})
    return built


def network_config(
    model: BertModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    num_outputs: int,
    label_names: list[str] | None,
    is_pair: bool = False,
) -> PreTrainedConfig:
    """The transformers configuration of a run's network, from which `empty_network` builds it without its weights.

    Args and Raises: see `build_model`.
    """
    folder = encoder_folder(model)
    config = scratch_config(model, tokenizer) if folder is None else _read_config(folder)
    _adapt(config, model, num_outputs, label_names)
    _check_vocabulary(config, tokenizer, model)
    pooling = _named_pooling(model, folder)
    if not hasattr(config, NATIVE_POOLING):
        if pooling == "mean":
            setattr(config, NUM_POOLED, 2 if is_pair else 1)
    elif pooling == "pooler":
        raise UserError(f"model.pooling=pooler: {config.model_type} has no pooler; possible: cls, mean")
    elif pooling is not None:
        setattr(config, NATIVE_POOLING, pooling)
    return config


def empty_network(config: Mapping[str, Any]) -> PreTrainedModel:
    """A network by its transformers configuration as in JSON, with random weights and in evaluation mode.

    Raises: UserError: this version of transformers does not know the architecture.
    """
    try:
        loaded = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    except KeyError as error:
        raise UserError(f"the run's network has an unknown architecture: {error.args[0]}") from error
    kind = AutoModel if hasattr(loaded, NUM_POOLED) else AutoModelForSequenceClassification
    network = kind.from_config(loaded, dtype=torch.float32, attn_implementation="sdpa")
    return (MeanPoolingClassifier(network) if hasattr(loaded, NUM_POOLED) else network).eval()


def takes_types(network: PreTrainedModel, is_pair: bool) -> bool:
    """Whether a network is given token types. All are 0 without a pair, which is the default of a network."""
    return is_pair and (isinstance(network, MeanPoolingClassifier) or getattr(network.config, "type_vocab_size", 0) > 1)


def _named_pooling(model: BertModelConfig, folder: Path | None) -> Pooling | None:
    """The pooling that the user or the encoder's files name; None where there is no such name."""
    return model.pooling or (sentence_pooling(folder) if folder is not None else None)


def _with_mean_head(built: BuiltModel) -> BuiltModel:
    """The same encoder with the project's own head."""
    network = MeanPoolingClassifier(built.model)
    names = set(network.state_dict())
    loaded = [f"encoder.{name}" for name in built.loaded if f"encoder.{name}" in names]
    dropped = [name for name in built.loaded if f"encoder.{name}" not in names]
    initialised = sorted(names - set(loaded))
    return replace(
        built, model=network, pooling="mean", loaded=loaded, initialised=initialised, unused=built.unused + dropped
    )


def _with_pooler(built: BuiltModel, asked: Pooling | None, pooling: Pooling | None) -> BuiltModel:
    """Keep the pooler of the weights, or start it anew where the first token's state itself is wanted."""
    pooler = [name for name in built.model.state_dict() if "pooler" in name.split(".")]
    trained = bool(pooler) and not set(pooler) & set(built.initialised)
    if asked == "pooler" and not trained:
        raise UserError("model.pooling=pooler: the weights have no pooler; possible: cls, mean")
    if not trained or pooling != "cls":
        return replace(built, pooling="pooler" if trained else "cls")
    for module in built.model.base_model.get_submodule("pooler").modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=built.model.config.initializer_range)
            nn.init.zeros_(module.bias)
    loaded = [name for name in built.loaded if name not in pooler]
    return replace(built, pooling="cls", loaded=loaded, initialised=sorted([*built.initialised, *pooler]))


def encoder_folder(model: BertModelConfig) -> Path | None:
    """The directory with configuration, tokenizer and weights; None for a ScratchConfig."""
    if not isinstance(model, EncoderConfig):
        return None
    return fetch_encoder(model.path, model.revision, model.pretrained, model.allow_pickle)


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of transformer layers of any architecture. Raises: UserError: there is none."""
    wanted = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise UserError(f"{type(model).__name__} has no list of {wanted} layers, so it is no encoder of the BERT family")


def freeze(model: PreTrainedModel, embeddings: bool, num_layers: int) -> None:
    """Exclude the embeddings or the first layers from training. Raises: UserError: there are fewer layers."""
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


def _from_random(config: PreTrainedConfig, kind: type[Any]) -> BuiltModel:
    model = kind.from_config(config, dtype=torch.float32)
    return BuiltModel(model, "cls", None, [], sorted(model.state_dict()))


def _from_folder(folder: Path, config: PreTrainedConfig, model: EncoderConfig, kind: type[Any]) -> BuiltModel:
    files = weight_files(folder, model.allow_pickle)
    sha256 = weights_sha256(files)
    if model.sha256 is not None and sha256 != model.sha256:
        raise UserError(
            f"model.sha256={model.sha256}: {', '.join(map(str, files))} is another file", f"it hashes to {sha256}"
        )
    try:
        with quiet_transformers():
            network, info = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=files[0].suffix == ".safetensors",
                trust_remote_code=False,
                local_files_only=True,
                # A checkpoint's head for other classes is replaced by a new one.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.path={model.path}: its weights cannot be loaded", _sentence(error)) from error
    mismatched = [str(entry[0]) for entry in info["mismatched_keys"]]
    initialised = sorted({*info["missing_keys"], *mismatched})
    loaded = sorted(name for name in network.state_dict() if name not in initialised)
    _check_encoder_loaded(initialised, model)
    return BuiltModel(network, "cls", sha256, loaded, initialised, sorted(info["unexpected_keys"]))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and its report on the head's tensors, which are always new."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _check_encoder_loaded(initialised: list[str], model: EncoderConfig) -> None:
    """transformers does not fail on weights of another architecture: it leaves the encoder at random values."""
    foreign = [name for name in initialised if not any(part in HEAD_PARTS for part in name.split("."))]
    if foreign:
        raise UserError(
            f"model.path={model.path}: its weights lack {len(foreign)} tensors of the encoder, such as {foreign[0]}",
            "the weights belong to another architecture; model.pretrained=false starts from random ones",
        )


def announce(built: BuiltModel, model: BertModelConfig) -> None:
    """Warn on the terminal and in the log about random weights, which are easily taken for pretrained ones."""
    if built.sha256 is None:
        hint = (
            "" if isinstance(model, EncoderConfig) else "; model=bert_base or model=minilm start from pretrained ones"
        )
        message = f"model={model.name} STARTS FROM RANDOM WEIGHTS{hint}"
        print(f"note: {message}", file=sys.stderr)
        log.warning(message)
    else:
        log.warning("newly initialised: %s", ", ".join(built.initialised))
    if isinstance(model, EncoderConfig) and built.revision not in (None, model.revision):
        message = (
            f"model.path={model.path}: the newest revision was taken; model.revision={built.revision} takes it again"
        )
        print(f"note: {message}", file=sys.stderr)
        log.warning(message)


def describe(built: BuiltModel) -> dict[str, Any]:
    """Facts for a run's record."""
    return {
        "pooling": built.pooling,
        "revision": built.revision,
        "weights_sha256": built.sha256,
        "starts_from_random_weights": built.sha256 is None,
        "num_loaded_tensors": len(built.loaded),
        "newly_initialised": built.initialised if built.sha256 is not None else "all",
        "unused_in_file": built.unused,
        "transformers_config": built.model.config.to_diff_dict(),
    }
