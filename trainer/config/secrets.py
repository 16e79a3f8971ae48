"""Which values are secrets, and how they stay out of what a run writes.

A run's files and its W&B page are shared, so they hold a secret only as a reference such as ${oc.env:HF_TOKEN}.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from trainer.errors import Problem

HIDDEN = "***"
SHORTEST_SECRET = 8  # of the environment's: a shorter value would be found within innocent words
_SECRET_NAME = re.compile(
    r"(^|[._-])(api_?key|key|token|secret|password|passwd|passphrase|credentials?)$", re.IGNORECASE
)
# A key may also name a token of a vocabulary, as pad_token=[PAD] does.
_SPECIAL_TOKEN = re.compile(r"\[\w+\]|<[^<>]+>")
# Variables that a configuration of this process has taken values from.
_read: set[str] = set()
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


def is_secret_name(name: str) -> bool:
    """Whether the last word of a key, or of an environment variable's name, says that its value is a secret."""
    return _SECRET_NAME.search(name) is not None


def note_variables(names: Iterable[str]) -> None:
    """Treat variables of the environment as secrets whatever their names, since a configuration refers to them."""
    _read.update(names)


def redact_words(words: Sequence[str]) -> list[str]:
    """A command line as it may be recorded."""
    return [_redact_word(word) for word in words]


def redact_text(text: str) -> str:
    """A text without the secrets of the environment and without passwords in URLs."""
    return _URL_PASSWORD.sub(HIDDEN, refer_to_environment(text))


def refer_to_environment(text: str) -> str:
    """A text in which each secret of the environment, as a shell or an interpolation puts it there, is a reference."""
    for name, value in sorted(os.environ.items()):
        if (name in _read or is_secret_name(name)) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, f"${{oc.env:{name}}}")
    return text


def map_texts(node: Any, change: Callable[[str], str]) -> Any:
    """Plain containers with every text in them changed."""
    if isinstance(node, Mapping):
        return {key: map_texts(child, change) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return [map_texts(child, change) for child in node]
    return change(node) if isinstance(node, str) else node


def literal_secrets(node: Any, path: str = "") -> Iterator[Problem]:
    """Secrets that stand in a configuration as they are, instead of as references.

    Args: node: plain containers with interpolations unresolved.
    """
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from literal_secrets(child, f"{path}.{name}" if path else str(name))
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from literal_secrets(child, f"{path}.{index}")
    elif isinstance(node, str) and node and "${" not in node:
        by_name = is_secret_name(path) and not _SPECIAL_TOKEN.fullmatch(node)
        if by_name or _URL_PASSWORD.search(node):
            advice = f"a secret would be written into the run's files; refer to it: {path}='${{oc.env:NAME}}'"
            yield Problem(path, HIDDEN, advice)


def _redact_word(word: str) -> str:
    key, equals, value = word.partition("=")
    if equals and value and is_secret_name(key.lstrip("+~-")) and "${" not in value:
        return f"{key}={HIDDEN}"
    return redact_text(word)
