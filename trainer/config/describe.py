"""The schema as text: type, value and meaning of every key, for `--help`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from trainer.config.identity import config_to_mapping
from trainer.config.schema import Config, Named, key_of
from trainer.errors import shown

WIDTH = 110
# The unit of a number is the end of its name, or one of these nouns among the first words of its docstring.
ENDINGS = {"_per_s": "1/s", "_s": "s", "_mb": "MiB", "_gib": "GiB"}
UNITS = (
    "batches", "channels", "checkpoints", "cores", "dimensions", "elements", "epochs", "evaluations", "gpus", "heads",
    "images", "jobs", "layers", "minutes", "nodes", "pixels", "ranks", "restarts", "samples", "share", "steps",
    "tokens", "updates", "utterances",
)  # fmt: skip
UNIT_WITHIN = 6
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
NAMES = {"integer": "int", "number": "float", "string": "text", "boolean": "true or false", "null": "null"}


def describe_config(config: Config[Any, Any, Any]) -> str:
    """All keys of a configuration, by node, with the values that it has."""
    nodes = [field.name for field in fields(config) if is_dataclass(getattr(config, field.name))]
    top = {key.name: config_to_mapping(getattr(config, key.name)) for key in plain_keys()}
    blocks = ["\n".join(describe_keys(plain_keys(), top))]
    for name in nodes:
        node = getattr(config, name)
        lines = list(describe_keys(keys_of(type(node)), config_to_mapping(node), f"{name}."))
        blocks.append("\n".join([f"{name}: {_first_paragraph(type(node))}", *lines]))
    for name, node in _named_nodes(config):
        lines = list(describe_keys(keys_of(type(node)), config_to_mapping(node), f"{name}."))
        blocks.append("\n".join([f"{name}: {_first_paragraph(type(node))}", *lines]))
    return "\n\n".join(blocks)


def _named_nodes(config: Config[Any, Any, Any]) -> Iterator[tuple[str, Any]]:
    """The nodes of groups whose members work together, by dotted key."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Mapping):
            yield from ((f"{field.name}.{name}", node) for name, node in value.items())


@dataclass(frozen=True)
class Key:
    """A key of the schema. type, meaning: as text."""

    name: str
    type: str
    meaning: str

    @property
    def unit(self) -> str:
        """What a number counts or measures, from the end of the name or the first words of the meaning; else empty."""
        if not re.search(r"\b(int|float)\b", self.type):
            return ""
        for ending, unit in ENDINGS.items():
            if self.name.endswith(ending):
                return unit
        words = re.findall(r"\w+", self.meaning.lower())[:UNIT_WITHIN]
        unit = next((word for word in words if word in UNITS), "").replace("gpus", "GPUs")
        return f"{unit} or share" if "float" in self.type and "int" in self.type else unit


def keys_of(schema: type[Any]) -> Iterator[Key]:
    """The fields of a node, except `name`, which is chosen as GROUP=MEMBER."""
    group = issubclass(schema, Named)
    for name, property_ in TypeAdapter(schema).json_schema()["properties"].items():
        if not (group and name == "name"):
            yield Key(name, _type_name(property_), _meaning(schema, name))


def plain_keys() -> Iterator[Key]:
    """The keys that stand at the top, without a node."""
    for name, info in Config.__pydantic_fields__.items():  # pyright: ignore[reportAttributeAccessIssue]
        property_ = TypeAdapter(info.rebuild_annotation()).json_schema()
        if property_.get("type") != "object":
            yield Key(name, _type_name(property_), " ".join((info.description or "").split()))


def describe_keys(keys: Iterable[Key], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Two lines for each key: key=value with its type, and its meaning.

    Args: values: by name; a key that has none is shown without a value.
    """
    for key in keys:
        value = f"={shown(typed_form(values[key.name]))}" if key.name in values else ""
        yield f"  {prefix + key.name + value:<44} {key.type}".rstrip()
        yield from textwrap.wrap(key.meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _meaning(schema: type[Any], name: str) -> str:
    """The docstring of a field; pydantic keeps that of an inherited one only in the class that declares it."""
    declared = (
        field
        for each in schema.__mro__
        for known, field in vars(each).get("__pydantic_fields__", {}).items()
        if key_of(known) == name
    )
    text = next((field.description for field in declared if field.description), None)
    return " ".join((text or "").split())


def typed_form(value: Any) -> Any:
    """A value as it is typed on a command line."""
    return f"[{','.join(str(each) for each in value)}]" if isinstance(value, list) else value


def _type_name(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words, such as `int >= 1 or auto`."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type_name(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(str(choice) for choice in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type_name(schema.get('items', {}))}"
    bounds = ", ".join(f"{sign} {schema[bound]:.10g}" for bound, sign in BOUNDS.items() if bound in schema)
    return f"{NAMES.get(schema.get('type', ''), 'value')} {bounds}".rstrip()


def _first_paragraph(schema: type[Any]) -> str:
    return " ".join((schema.__doc__ or "").partition("\n\n")[0].split())
