"""Words of a verb as the typed arguments that its schema has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from trainer.errors import ConfigError, Problem, nearest

T = TypeVar("T")


def typed_arguments(schema: type[T], words: Sequence[str]) -> T:
    """key=value words as an object of a dataclass of pydantic. Raises: ConfigError: a wrong key or value."""
    texts = {key: text for key, _, text in (word.partition("=") for word in words)}
    fields = list(getattr(schema, "__dataclass_fields__", {}))
    problems = [Problem(key, texts[key], nearest(key, fields)) for key in texts if key not in fields]
    if problems:
        raise ConfigError(problems)
    values = {key: _value(text) for key, text in texts.items()}
    first = wrong = _errors(schema, values)
    # A text that YAML takes for something else, such as a file called 2024 or the word null.
    values |= {key: texts[key] for key in wrong if key in texts}
    wrong = _errors(schema, values)
    if wrong:
        raise ConfigError([Problem(key, texts.get(key), first.get(key, message)) for key, message in wrong.items()])
    return TypeAdapter(schema).validate_json(json.dumps(values, default=str))


def _errors(schema: type[Any], values: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each argument."""
    try:
        TypeAdapter(schema).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        return {str(detail["loc"][0]): detail["msg"] for detail in error.errors(include_url=False)}
    return {}


def _value(text: str) -> Any:
    """A value as YAML, or as it is where it is none, such as a comma."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
