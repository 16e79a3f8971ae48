"""What the verbs take, as key=value words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, TypeVar

from examples.customer_service.data import GENERATED
from trainer import UserError

OUT = "outputs/customer_service"
MODELS = ("tiny", "minilm")


@dataclass(frozen=True)
class TrainOptions:
    """data: a file, a folder with train.* and test.*, or "generated". answers: a file of answers by intent, "" the
    built-in ones. model: tiny or minilm. precision: share of right answers that the thresholds have to keep.
    matcher: whether to train a model of pairs (question, answer) that orders what retrieval finds; it needs pretrained
    weights, from random ones it is no better than chance.
    matcher_pairs: how many pairs it learns from. out: folder of the application.
    """

    data: str = GENERATED
    answers: str = ""
    model: str = "tiny"
    precision: float = 0.97
    matcher: bool = False
    matcher_pairs: int = 8000
    out: str = OUT

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UserError(f"model={self.model}: {' or '.join(MODELS)} is possible")
        if not 0.5 <= self.precision < 1.0:
            raise UserError(f"precision={self.precision}: a share from 0.5 to below 1 is possible")
        if self.matcher_pairs < 2:
            raise UserError(f"matcher_pairs={self.matcher_pairs}: at least 2")


@dataclass(frozen=True)
class EvaluateOptions:
    """out: folder of the application. out_of_scope: a file or folder of questions that nobody has an answer for."""

    out: str = OUT
    out_of_scope: str = ""


@dataclass(frozen=True)
class ServeOptions:
    """out: folder of the application. port: 0 takes a free one. slots: a JSON file of slot values, "" the built-in."""

    out: str = OUT
    host: str = "127.0.0.1"
    port: int = 8800
    slots: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"port={self.port}: 0 to 65535 is possible")


@dataclass(frozen=True)
class RetrainOptions:
    """out: folder of the application."""

    out: str = OUT


Options = TypeVar("Options")


def parse(words: Sequence[str], options: type[Options]) -> tuple[Options, list[str]]:
    """The options of a verb, and the words for the trainer: those with a dot in their key, such as trainer.devices=2.

    Raises: UserError: a key or value that is not possible.
    """
    known = {field.name: field for field in fields(options)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for_trainer: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word}: not of the form key=value")
        if "." in key and options in (TrainOptions, RetrainOptions):
            for_trainer.append(word)
        elif key in known:
            values[key] = _typed(known[key], value)
        else:
            raise UserError(f"{word}: no such key; possible: {', '.join(known)}")
    return options(**values), for_trainer


def _typed(field: Field[Any], text: str) -> Any:
    kind = type(field.default)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if kind is not bool:
            return kind(text)
    except ValueError:
        pass
    expected = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
    raise UserError(f"{field.name}={text}: {expected} is expected")
