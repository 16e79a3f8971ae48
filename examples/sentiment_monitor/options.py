"""What the verbs take, as key=value words."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from examples.sentiment_monitor.settings import DEFAULT
from trainer import UserError

OUT = Path("outputs/sentiment_monitor")
GENERATED = "generated"
MODELS = ("auto", "minilm", "bert_tiny")


@dataclass(frozen=True)
class TrainOptions:
    """data: generated, phrasebank, sst2, or a file. model: auto is minilm where its package is installed.

    export: to ONNX. out: folder of the application. Words with a dot in their key go to the trainer: trainer.devices=2.
    """

    data: str = GENERATED
    model: str = "auto"
    export: bool = True
    out: Path = OUT

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UserError(f"model={self.model}: possible: {', '.join(MODELS)}")


@dataclass(frozen=True)
class EvaluateOptions:
    """out: folder of the application."""

    out: Path = OUT


@dataclass(frozen=True)
class GenerateOptions:
    """output: a CSV file. windows: of an hour; the surge is in the last 12. seed: of the draws."""

    output: Path = OUT / "generated.csv"
    windows: int = 216
    seed: int = 0

    def __post_init__(self) -> None:
        if not 12 < self.windows <= 10_000:
            raise UserError(f"windows={self.windows}: 13 to 10000 is possible")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: at least 0")


@dataclass(frozen=True)
class ScoreOptions:
    """input: a file, or - for standard input. out: folder of the application. config: settings.

    webhook, alert_file: where alerts go besides the page.
    """

    input: str = ""
    out: Path = OUT
    config: Path = DEFAULT
    webhook: str | None = None
    alert_file: Path | None = None

    def __post_init__(self) -> None:
        if not self.input:
            raise UserError("input: is required: a file, or - for standard input")


@dataclass(frozen=True)
class ServeOptions:
    """out: folder of the application. port: 0 takes a free one. config: settings.

    webhook, alert_file: where alerts go besides the page.
    """

    out: Path = OUT
    host: str = "127.0.0.1"
    port: int = 8801
    config: Path = DEFAULT
    webhook: str | None = None
    alert_file: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"port={self.port}: 0 to 65535 is possible")


@dataclass(frozen=True)
class CalibrateOptions:
    """out: folder of the application. config: settings."""

    out: Path = OUT
    config: Path = DEFAULT


Options = TypeVar("Options")


def parse(words: Sequence[str], options: type[Options]) -> tuple[Options, list[str]]:
    """The options of a verb, and the words for the trainer: those with a dot in their key.

    Raises: UserError: a key or value that is not possible.
    """
    kinds = typing.get_type_hints(options)
    values: dict[str, Any] = {}
    for_trainer: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word}: not of the form key=value")
        if "." in key and issubclass(options, TrainOptions):
            for_trainer.append(word)
        elif key in kinds:
            values[key] = _typed(key, kinds[key], value)
        else:
            raise UserError(f"{word}: no such key; possible: {', '.join(kinds)}")
    return options(**values), for_trainer


def _typed(key: str, kind: Any, text: str) -> Any:
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{key}={text}: true or false is expected")
        return text.lower() == "true"
    if kind is not str and not text:
        raise UserError(f"{key}=: a value is expected")
    try:
        return Path(text).expanduser() if kind is Path else kind(text)
    except ValueError as error:
        raise UserError(f"{key}={text}: a whole number is expected") from error


def described(options: type[Any]) -> str:
    """The keys of a verb with their defaults, for its help."""
    lines = [f"  {field.name}={'' if field.default is None else field.default}" for field in fields(options)]
    return "\n".join([*lines, "", options.__doc__ or ""])
