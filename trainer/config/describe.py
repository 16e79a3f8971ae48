"""The schema as text: type, value and meaning of every key, for `--help`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from trainer.config.identity import config_to_mapping
from trainer.config.schema import Config
from trainer.errors import shown

WIDTH = 110
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
NAMES = {"integer": "int", "number": "float", "string": "text", "boolean": "true or false", "null": "null"}


def describe_config(config: Config[Any, Any, Any]) -> str:
    """All keys of a configuration, by node, with the values that it has."""
    nodes = [field.name for field in fields(config) if is_dataclass(getattr(config, field.name))]
    blocks = ["\n".join(_plain_keys(config))]
    for name in nodes:
        node = getattr(config, name)
        lines = list(describe_keys(type(node), config_to_mapping(node), f"{name}."))
        blocks.append("\n".join([f"{name}: {_first_paragraph(type(node))}", *lines]))
    return "\n\n".join(blocks)


def describe_keys(schema: type[Any], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Two lines for each field of a schema: key=value with its type, and its docstring.

    Args: values: by field; a field that has none is shown without a value.
    """
    for name, property_ in TypeAdapter(schema).json_schema()["properties"].items():
        if prefix and name == "name":  # chosen as group=member
            continue
        yield from _key(f"{prefix}{name}", {**property_, "description": _meaning(schema, name)}, values)


def _meaning(schema: type[Any], name: str) -> str | None:
    """The docstring of a field; pydantic keeps that of an inherited one only in the class that declares it."""
    declared = (vars(each).get("__pydantic_fields__", {}).get(name) for each in schema.__mro__)
    return next((field.description for field in declared if field is not None and field.description), None)


def _plain_keys(config: Config[Any, Any, Any]) -> Iterator[str]:
    """The keys that stand at the top, without a node."""
    for name, info in Config.__pydantic_fields__.items():  # pyright: ignore[reportAttributeAccessIssue]
        value = getattr(config, name)
        if not is_dataclass(value):
            schema = TypeAdapter(info.rebuild_annotation()).json_schema()
            yield from _key(name, {**schema, "description": info.description}, {name: config_to_mapping(value)})


def _key(key: str, property_: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    name = key.rpartition(".")[2]
    value = f"={shown(_typed_form(values[name]))}" if name in values else ""
    yield f"  {key + value:<44} {_type_name(property_)}".rstrip()
    meaning = " ".join(str(property_.get("description") or "").split())
    yield from textwrap.wrap(meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _typed_form(value: Any) -> Any:
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
