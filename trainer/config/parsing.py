"""A composed mapping -> `Config`, or every problem in it at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from trainer.config.groups import NAMED_GROUPS, OWN_SCHEMAS, SHARED_GROUPS
from trainer.config.own_parts import TARGET, is_own
from trainer.config.schema import Config, Named
from trainer.errors import ConfigError, Problem, nearest
from trainer.task import TaskSpec

T = TypeVar("T")
MISSING_VALUE = "???"  # OmegaConf's


def parse_config(mapping: Mapping[str, Any], task: TaskSpec, chosen: Mapping[str, str]) -> Config:
    """Give each node its class, chosen by the node's `name`, and check every value's type and bounds.

    Args: mapping: plain containers, interpolations resolved. task: whose task, model and data schemas apply.
        chosen: members that the command line names, by group.
    Raises: ConfigError: with all problems, in the order of the schema.
    """
    groups: dict[str, Mapping[str, type[Named]]] = {
        "task": {task.name: task.config},
        "model": task.models,
        "data": task.datas,
        **SHARED_GROUPS,
    }
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, adapter in _plain_nodes().items():
        if name in groups or name in NAMED_GROUPS:
            continue
        if name not in mapping:
            problems.append(Problem(name, None, "is missing"))
            continue
        _collect(adapter, mapping[name], name, values, problems)
    for key in mapping.keys() - _plain_nodes().keys():
        problems.append(Problem(key, mapping[key], f"no such key; {nearest(key, list(_plain_nodes()))}"))
    for group, members in groups.items():
        node = mapping.get(group)
        if isinstance(node, Mapping) and is_own(node):
            _collect_own(group, node, task, values, problems)
            continue
        name = node.get("name") if isinstance(node, Mapping) else None
        if not isinstance(name, str) or name not in members:
            problems.append(_no_member(group, node, members, task, chosen))
            continue
        _collect(TypeAdapter(members[name]), node, group, values, problems)
    for group, members in NAMED_GROUPS.items():
        values[group] = _named_nodes(group, mapping.get(group), members, problems)
    if problems:
        raise ConfigError(problems)
    return Config(**values)


def _no_member(group: str, node: Any, members: Mapping[str, Any], task: TaskSpec, chosen: Mapping[str, str]) -> Problem:
    """Why a node belongs to no member of its group."""
    name = node.get("name") if isinstance(node, Mapping) else None
    typed = chosen.get(group, name)
    if isinstance(node, Mapping) and name is None:
        advice = f"its file has no name; a file of your own sets name to one of {', '.join(sorted(members))}"
        return Problem(group, typed, advice)
    owner = f" of task={task.name}" if group in ("model", "data") else ""
    return Problem(group, typed, f"no such {group}{owner}; {nearest(str(name), list(members))}")


def _collect_own(
    group: str, node: Mapping[str, Any], task: TaskSpec, values: dict[str, Any], problems: list[Problem]
) -> None:
    """Give a node with `_target_` the schema of an own part."""
    schema = {**OWN_SCHEMAS, "model": task.own_model}.get(group)
    if schema is None:
        advice = f"task={task.name} takes no {group} of your own"
        problems.append(Problem(f"{group}.{TARGET}", node[TARGET], advice))
    elif node[TARGET] == MISSING_VALUE:
        advice = f"is missing, as in {group}.{TARGET}=my_package.MyClass; see docs/own_parts.md"
        problems.append(Problem(f"{group}.{TARGET}", None, advice))
    else:
        _collect(TypeAdapter(schema), node, group, values, problems)


def _named_nodes(group: str, nodes: Any, members: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The nodes of a group whose members work together, by name."""
    if not isinstance(nodes, Mapping):
        problems.append(Problem(group, nodes, f"holds nodes by name, as in {group}.NAME.KEY=VALUE"))
        return {}
    values: dict[str, Any] = {}
    for name, node in nodes.items():
        path = f"{group}.{name}"
        if isinstance(node, Mapping) and is_own(node):
            schema = OWN_SCHEMAS[group]
            _collect(TypeAdapter(schema), node, path, values, problems)
        elif name in members:
            _collect(TypeAdapter(members[name]), node, path, values, problems)
        else:
            known = f"{nearest(name, list(members))}; " if members else ""
            advice = f"{known}one of your own has a _target_, as in {path}._target_=my_package.MyClass"
            problems.append(Problem(path, None if isinstance(node, Mapping) else node, f"no such name; {advice}"))
    return {path.removeprefix(f"{group}."): value for path, value in values.items()}


def _plain_nodes() -> dict[str, TypeAdapter[Any]]:
    hints = Config.__pydantic_fields__  # pyright: ignore[reportAttributeAccessIssue]
    return {name: TypeAdapter(info.rebuild_annotation()) for name, info in hints.items()}


def _collect(adapter: TypeAdapter[Any], node: Any, path: str, values: dict[str, Any], problems: list[Problem]) -> None:
    try:
        # Strict JSON mode takes an object for a dataclass and a list for a list, and still no "3" for 3.
        values[path] = adapter.validate_json(json.dumps(node))
    except ValidationError as error:
        problems.extend(_problems(error, path, node))


def _problems(error: ValidationError, path: str, node: Any) -> list[Problem]:
    """One problem for each key: a union reports each of its arms, which are joined to one sentence."""
    advice: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for detail in error.errors(include_url=False):
        inner = _key_parts(detail, node)
        key = ".".join([path, *inner])
        inputs.setdefault(key, detail["input"])
        sentence = _sentence(detail, node, inner)
        if sentence not in advice.setdefault(key, []):
            advice[key].append(sentence)
    return [
        Problem(key, None if "is missing" in sentences else inputs[key], _joined(sentences))
        for key, sentences in advice.items()
    ]


def _joined(sentences: list[str]) -> str:
    """The arms of a union as one sentence, such as `should be greater than or equal to 1, or auto`."""
    words = sorted((s for s in sentences if s.startswith("possible: ")), key=len)
    others = [sentence for sentence in sentences if sentence not in words]
    if not others:
        return " or ".join(sentences)
    return " or ".join(others) + "".join(f", or {word.removeprefix('possible: ')}" for word in words)


def _key_parts(detail: ErrorDetails, root: Any) -> list[str]:
    """The location as far as it names keys of the node; what follows names arms of a union."""
    parts: list[str] = []
    node: Any = root
    for part in detail["loc"]:
        known = (isinstance(node, Mapping) and part in node) or (isinstance(node, list) and isinstance(part, int))
        if not known and not (detail["type"] == "missing" and part == detail["loc"][-1]):
            break
        parts.append(str(part))
        node = node[part] if known else None  # pyright: ignore[reportCallIssue, reportArgumentType]
    return parts


def _sentence(detail: ErrorDetails, node: Any, inner: list[str]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        siblings = [key for key in node if key != inner[-1]] if isinstance(node, Mapping) else []
        return f"no such key; {nearest(inner[-1], siblings)}"
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return nearest(str(detail["input"]), choices)
    if kind == "list_type":
        return f"must be a list, as in {'.'.join(inner)}=[a,b]"
    if kind == "dataclass_type":
        return "is a node of several keys, as in NODE.KEY=VALUE"
    return detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
