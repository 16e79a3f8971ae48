"""What the verbs take, as key=value words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, TypeVar

from trainer import UserError

OUT = "outputs/recommendation"
MODELS = ("tiny", "minilm")


@dataclass(frozen=True)
class TrainOptions:
    """path: folder with the documented files or MovieLens' files, "" for the generated set. model: tiny or minilm.
    out: folder of the application.
    """

    path: str = ""
    model: str = "tiny"
    out: str = OUT

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UserError(f"model={self.model}: {' or '.join(MODELS)} is possible")


@dataclass(frozen=True)
class EvaluateOptions:
    """out: folder of the application. k: length of the measured lists. result: folder for the table, "" none."""

    out: str = OUT
    k: int = 10
    result: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 100:
            raise UserError(f"k={self.k}: 1 to 100 is possible")


@dataclass(frozen=True)
class ServeOptions:
    """out: folder of the application. host, port: of the service; port 0 takes a free one."""

    out: str = OUT
    host: str = "127.0.0.1"
    port: int = 8802

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"port={self.port}: 0 to 65535 is possible")


Options = TypeVar("Options", TrainOptions, EvaluateOptions, ServeOptions)


def parse(words: Sequence[str], options: type[Options]) -> tuple[Options, list[str]]:
    """The options of a verb, and the words for the trainer: those with a dot in their key, such as trainer.devices=2.

    Raises: UserError: a key or value that is not possible.
    """
    known = {field.name: field for field in fields(options)}
    values: dict[str, Any] = {}
    for_trainer: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word}: not of the form key=value")
        if "." in key and options is TrainOptions:
            for_trainer.append(word)
        elif key in known:
            values[key] = _typed(known[key], value)
        else:
            raise UserError(f"{word}: no such key; possible: {', '.join(known)}")
    return options(**values), for_trainer


def _typed(field: Field[Any], text: str) -> Any:
    if not isinstance(field.default, int):
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{field.name}={text}: a whole number is expected") from error
