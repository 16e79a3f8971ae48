"""Limits for YAML that may come from anybody: what a parser would make of it before anything is checked.

Aliases let a file of a kilobyte stand for gigabytes, and deep nesting ends the recursion of every reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from trainer.errors import UserError

MAX_BYTES = 2**20
MAX_DEPTH = 50
MAX_NODES = 100_000


def read_yaml_text(file: Path) -> str:
    """A YAML file as text, after a look at its size. Raises: UserError: it is beyond the limits. OSError."""
    with file.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{file}: is larger than {MAX_BYTES >> 20} MiB, which is no configuration")
    text = content.decode("utf-8", "replace")
    try:
        problem = find_excess(text)
    except yaml.YAMLError:
        return text  # parsing it reports what is wrong
    if problem is not None:
        raise UserError(f"{file}: {problem}, which is no configuration")
    return text


def find_excess(text: str) -> str | None:
    """What is beyond the limits, as a phrase. Nothing is built, so that the time is that of reading the text.

    Raises: yaml.YAMLError: the text is not YAML.
    """
    try:
        return _find_excess(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        # libyaml has a limit of its own for nesting, and gives its error before the events that lead to it.
        return _find_excess(text, yaml.SafeLoader)


def _find_excess(text: str, loader: Any) -> str | None:
    # Number of nodes below each open collection and each anchor, aliases written out.
    sizes: list[int] = [0]
    names: list[str | None] = [None]
    anchors: dict[str, int] = {}
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            names.append(event.anchor)
            if len(sizes) > MAX_DEPTH:
                return f"is nested more than {MAX_DEPTH} levels deep"
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, name = sizes.pop(), names.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size, name = 1, event.anchor
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                return f"has an alias *{event.anchor} to itself"
            size, name = anchors[event.anchor], None
        else:
            continue
        if name is not None:
            anchors[name] = size
        sizes[-1] += size
        if sizes[-1] > MAX_NODES:
            return f"stands for more than {MAX_NODES:,} values"
    return None
