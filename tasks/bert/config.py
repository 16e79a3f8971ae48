"""The configuration schema of the BERT task, and its TaskSpec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from omegaconf import OmegaConf
from pydantic import Field

from tasks.bert.weights import encoder_problems, position_limit
from trainer.config.own_parts import OwnModelConfig
from trainer.config.schema import Config, Count, DataConfig, Fraction, ModelConfig, Positive, TaskConfig, settings
from trainer.data.texts.config import (
    CsvConfig,
    EncodedFilesConfig,
    NamedTextConfig,
    Quoting,
    StoredTextConfig,
    TextDataConfig,
    TextFilesConfig,
    text_problems,
)
from trainer.errors import Problem, nearest
from trainer.task import TaskSpec

Pooling = Literal["cls", "pooler", "mean"]

# What monitor.metric may name; those of the positive class exist for two classes only, which the data decides.
METRICS = {
    "classification": (
        "val/accuracy", "val/f1", "val/f1_macro", "val/loss", "val/mcc", "val/precision", "val/recall",
    ),
    "regression": ("val/loss", "val/pearson", "val/rmse", "val/spearman"),
}  # fmt: skip


SMALLER_IS_BETTER = ("val/loss", "val/rmse")


def choose(key: Any, options: Mapping[Any, Any], default: Any = None) -> Any:
    """An interpolation by another value: ${choose:${model.pretrained},{true:3,false:10}}."""
    return options.get(key, default)


OmegaConf.register_new_resolver("choose", choose, replace=True)


@settings
class BertTaskConfig(TaskConfig):
    """Fine-tuning of an encoder on labelled sentences or pairs."""

    kind: Literal["classification", "regression"]
    """One of several classes by cross-entropy, or a score by squared error of standardised targets."""
    class_weights: Literal["balanced"] | list[Positive] | None
    """Weight of each class in the loss, in the order of the labels; balanced is N / (C N_c) over the training set."""
    head_lr_scale: Positive
    """Learning rate of the new head as a multiple of the encoder's; without effect on a model of random weights."""
    layer_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)]
    """Share of the learning rate of the layer above that a layer has; 1 is the same rate everywhere."""
    freeze_embeddings: bool
    """Do not train the embeddings."""
    freeze_layers: Annotated[int, Field(ge=0)]
    """Number of first layers that are not trained; needs freeze_embeddings."""
    baseline: bool
    """Also fit TF-IDF with logistic or ridge regression on the same rows, and report its metrics."""


@settings
class BertModelConfig(ModelConfig):
    """An encoder with a head for classes or a score."""

    # The first computes the same gradients with less memory; the others act through the keys that refer to them.
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing", "suggested_lr", "suggested_epochs"})

    pooling: Pooling | None
    """How the states of tokens become one vector: the first token's state through a new head (cls) or through the
    pooler of the weights (pooler), or the mean over all tokens (mean). null takes what sentence-transformers' files
    beside the weights name, else the pooler where the weights have one, else cls."""
    dropout: Fraction | None
    """Share of activations dropped everywhere in the model; null takes the model's own shares."""
    gradient_checkpointing: bool
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    suggested_lr: Positive
    """Peak learning rate that suits the size and origin of the weights; optimizer.lr is this unless it is set."""
    suggested_epochs: Count
    """Epochs that suit the origin of the weights; trainer.max_epochs is this unless it is set."""


@settings
class EncoderConfig(BertModelConfig):
    """Any BERT-family encoder, from the hub or a local directory."""

    path: str
    """Hub id, local directory, or package://NAME/FOLDER inside an installed Python package."""
    revision: str | None
    """Branch, tag or commit on the hub; null takes the newest."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """Expected SHA-256 of the weights file; null accepts any."""
    pretrained: bool
    """Load the weights; false keeps architecture and tokenizer and starts from random weights."""
    num_layers: Count | None
    """Number of first layers to keep; null keeps all."""
    allow_pickle: bool
    """Also load pickled weights, which can run code."""


@settings
class ScratchConfig(BertModelConfig):
    """A BERT of any size with random weights and a WordPiece vocabulary trained on the training split."""

    vocab_size: Annotated[int, Field(ge=100)]
    """Largest vocabulary in tokens, which are word pieces."""
    hidden_size: Count
    """Width of a token's representation."""
    num_layers: Count
    """Transformer layers."""
    num_heads: Count
    """Attention heads of a layer; divides hidden_size."""
    intermediate_size: Count
    """Width inside a layer's feed-forward network."""
    max_positions: Count
    """Longest text in tokens that the model can take."""


@settings
class OwnTextModelConfig(OwnModelConfig):
    """A network of the user's own, with a WordPiece vocabulary trained on the training split."""

    vocab_size: Annotated[int, Field(ge=100)]
    """Largest number of word pieces."""


@settings
class IntentsConfig(TextDataConfig):
    """A customer-service set that the project generates."""

    num_train: Count
    """Utterances of the training split."""
    num_validation: Count
    """Utterances of the validation split, whose phrasings are in no other split."""
    num_test: Count
    """Utterances of the test split, whose phrasings are in no other split."""


@settings
class PredictArguments:
    """python -m trainer predict run=DIR input=FILE: rows in, rows with label and probabilities out."""

    input: str
    """CSV, JSON or Parquet file with the text columns of the training data, also compressed (.gz, .xz, .zst)."""
    output: str | None = None
    """File to write, in the format of its ending; null writes predictions.<ending of the input> into the run."""
    on_bad_row: Literal["error", "skip", "null"] = "error"
    """What to do with a row without a text: stop, leave the row out, or write it without a prediction."""
    delimiter: str | None = None
    """Of a CSV input, as data.delimiter; null detects it."""
    header: bool | None = None
    """Of a CSV input, as data.header; null is as in training."""
    quoting: Quoting | None = None
    """Of a CSV input, as data.quoting; null is as in training."""
    encoding: str | None = None
    """Of the input, as data.encoding; null is as in training."""


TextModelConfig = BertModelConfig | OwnTextModelConfig
BertConfig = Config[BertTaskConfig, TextModelConfig, TextDataConfig]


def validate(config: BertConfig) -> Sequence[Problem]:
    """Contradictions between values that each have the right type."""
    task, model, data = config.task, config.model, config.data
    return [
        *_metric_problems(task, config),
        *_task_problems(task, config.optimizer.name),
        *(
            encoder_problems(model.path, model.pretrained, model.allow_pickle)
            if isinstance(model, EncoderConfig)
            else ()
        ),
        *_size_problems(task, model, data),
        *text_problems(data),
    ]


def _metric_problems(task: BertTaskConfig, config: BertConfig) -> Iterator[Problem]:
    metric, mode = config.monitor.metric, config.monitor.mode
    if metric.removeprefix("val/") in config.metrics:
        return
    if metric not in METRICS[task.kind]:
        advice = nearest(metric, METRICS[task.kind])
        yield Problem("monitor.metric", metric, f"not measured with task.kind={task.kind}; {advice}")
    elif mode != ("min" if metric in SMALLER_IS_BETTER else "max"):
        better = "smaller" if metric in SMALLER_IS_BETTER else "larger"
        yield Problem("monitor.mode", mode, f"a {better} {metric} is better")


def _task_problems(task: BertTaskConfig, optimizer: str) -> Iterator[Problem]:
    if task.kind == "regression" and task.class_weights is not None:
        yield Problem("task.class_weights", task.class_weights, "a score has no classes; null")
    if task.freeze_layers and not task.freeze_embeddings:
        yield Problem("task.freeze_layers", task.freeze_layers, "needs task.freeze_embeddings=true")
    if optimizer == "muon" and task.layer_lr_decay != 1.0:
        yield Problem("task.layer_lr_decay", task.layer_lr_decay, "muon has two learning rates; 1.0, or adamw")


def _size_problems(task: BertTaskConfig, model: TextModelConfig, data: TextDataConfig) -> Iterator[Problem]:
    if isinstance(model, OwnTextModelConfig):
        unknown = {"freeze_embeddings": False, "freeze_layers": 0, "layer_lr_decay": 1.0}
        for key, without in unknown.items():
            if getattr(task, key) != without:
                advice = f"the layers of model={model.name}, a network of your own, are not known; use {without}"
                yield Problem(f"task.{key}", getattr(task, key), advice)
    num_layers = model.num_layers if isinstance(model, (EncoderConfig, ScratchConfig)) else None
    if num_layers is not None and task.freeze_layers > num_layers:
        yield Problem("task.freeze_layers", task.freeze_layers, f"the model has {num_layers} layers")
    if isinstance(model, ScratchConfig) and model.hidden_size % model.num_heads:
        advice = f"does not divide model.hidden_size={model.hidden_size}"
        yield Problem("model.num_heads", model.num_heads, advice)
    limit, key = None, f"model={model.name}"
    if isinstance(model, ScratchConfig):
        limit, key = model.max_positions, f"model.max_positions={model.max_positions}"
    elif isinstance(model, EncoderConfig):
        limit = position_limit(model.path)
    if limit is not None and data.max_length > limit:
        yield Problem("data.max_length", data.max_length, f"{key} takes at most {limit} tokens")


MODELS: dict[str, type[ModelConfig]] = {
    "bert_tiny": ScratchConfig,
    "bert_base": EncoderConfig,
    "bert_large": EncoderConfig,
    "minilm": EncoderConfig,
    "modernbert": EncoderConfig,
}
DATAS: dict[str, type[DataConfig]] = {
    "intents": IntentsConfig,
    "sst2": NamedTextConfig,
    "mrpc": NamedTextConfig,
    "banking77": NamedTextConfig,
    "financial_phrasebank": NamedTextConfig,
    "ag_news": NamedTextConfig,
    "imdb": NamedTextConfig,
    "hub_text": StoredTextConfig,
    "csv": CsvConfig,
    "jsonl": EncodedFilesConfig,
    "parquet": TextFilesConfig,
}
TASK = TaskSpec(
    name="bert",
    config=BertTaskConfig,
    models=MODELS,
    datas=DATAS,
    module="tasks.bert.module:build_module",
    data="tasks.bert.data:build_data",
    sizes="tasks.bert.sizes:sizes",
    validate=validate,
    inference="tasks.bert.inference:BertInference",
    predict_arguments=PredictArguments,
    own_model=OwnTextModelConfig,
    takes_metrics=True,
)
