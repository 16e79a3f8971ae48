"""The configuration of the two-tower task, and the task itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from trainer.config.schema import Config, Count, DataConfig, Fraction, ModelConfig, Positive, TaskConfig, settings
from trainer.errors import Problem
from trainer.task import TaskSpec


@settings
class TwoTowerConfig(TaskConfig):
    """Retrieval of the next item by a user's last ones."""

    temperature: Positive
    """Divides the cosine of a user and an item in the softmax."""
    logq: Fraction
    """Share of the logQ correction: this times the logarithm of an item's share of the training pairs is subtracted
    from its logit, since popular items are drawn more often as in-batch negatives."""


@settings
class TowerConfig(ModelConfig):
    """A text encoder, whose mean over tokens is the vector of an item."""

    # They act through the keys that refer to them.
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"suggested_lr", "suggested_epochs"})

    num_layers: Count
    """Transformer layers; of a pretrained encoder the first ones are kept."""
    suggested_lr: Positive
    """Peak learning rate that suits the weights; optimizer.lr is this unless it is set."""
    suggested_epochs: Count
    """Epochs that suit the weights; trainer.max_epochs is this unless it is set."""


@settings
class PretrainedTowerConfig(TowerConfig):
    """An encoder of the BERT family from a directory."""

    path: str
    """Directory of the encoder, or package://NAME/FOLDER inside an installed Python package."""


@settings
class TinyTowerConfig(TowerConfig):
    """A small encoder of random weights on whole words."""

    hidden_size: Count
    """Width of a token's representation."""
    num_heads: Count
    """Attention heads of a layer; divides hidden_size."""
    vocab_size: Annotated[int, Field(ge=100)]
    """Most frequent words of the item texts that have a vector of their own."""


@settings
class HistoriesConfig(DataConfig):
    """Interactions and item texts in a folder, in the form that README.md describes."""

    folder: str
    """Folder with items.csv and interactions.csv."""
    train_before: Positive
    """Time in seconds since 1970 before which a pair's target is for training."""
    validate_before: Positive
    """Time in seconds since 1970 before which a later target is for validation."""
    max_validation: Count
    """Largest number of validation pairs; more are thinned evenly."""
    max_history: Count
    """Latest items of a user that make the user's vector."""
    max_length: Annotated[int, Field(ge=4)]
    """Longest item text in tokens; the rest is cut."""


TwoTowerRun = Config[TwoTowerConfig, TowerConfig, HistoriesConfig]


def validate(config: TwoTowerRun) -> Sequence[Problem]:
    """Contradictions between values that each have the right type."""
    model, data = config.model, config.data
    problems = []
    if isinstance(model, TinyTowerConfig) and model.hidden_size % model.num_heads:
        advice = f"does not divide model.hidden_size={model.hidden_size}"
        problems.append(Problem("model.num_heads", model.num_heads, advice))
    if data.validate_before <= data.train_before:
        advice = f"must be after data.train_before={data.train_before}"
        problems.append(Problem("data.validate_before", data.validate_before, advice))
    return problems


TASK = TaskSpec(
    name="two_tower",
    config=TwoTowerConfig,
    models={"tower_minilm": PretrainedTowerConfig, "tower_tiny": TinyTowerConfig},
    datas={"histories": HistoriesConfig},
    module="two_tower.module:build_module",
    data="two_tower.data:build_data",
    inference="two_tower.inference:ItemInference",
    validate=validate,
    conf=Path(__file__).parent / "conf",
)
