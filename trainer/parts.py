"""Builds what a node with `_target_` names, or takes the object that a Python call has passed in its place.

Only what the user's own command names is ever imported.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.config.own_parts import OBJECT, TARGET, OwnPart, own_targets
from trainer.errors import UserError

log = logging.getLogger(__name__)
# Import paths that this process may import, because its own command line or Python call has named them.
_trusted: set[str] = set()
# Objects of the Python call in progress, by the key of their node.
_objects: dict[str, Any] = {}


def trust(targets: Iterable[str], config_dirs: Iterable[Path] = ()) -> None:
    """Allow imports that the user's own words name.

    Modules are found as Python finds them, then in the working directory and in the folders that hold `config_dirs`:
    behind all others, so that no file there takes the place of an installed package.
    """
    _trusted.update(targets)
    for folder in (Path.cwd(), *(directory.resolve().parent for directory in config_dirs)):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


@contextmanager
def offered(objects: Mapping[str, Any]) -> Iterator[None]:
    """Use objects for the parts of one call. Args: objects: by the key of their node, such as model."""
    _objects.update(objects)
    try:
        yield
    finally:
        for key in objects:
            _objects.pop(key, None)


def find_part(key: str, part: OwnPart) -> Callable[..., Any]:
    """Import what a part names, without calling it. Args: key: of the node, for messages.

    Raises: UserError: a stored run names it and the user's command does not, or it is nothing that can be called.
    """
    from hydra.utils import get_object

    if part.target.startswith(OBJECT):
        return _offered_object(key, part.target.removeprefix(OBJECT))
    for inner, target in own_targets(key, part):
        if target not in _trusted:
            raise UserError(
                f"{inner}.{TARGET}={target}: a stored run imports no code by itself",
                f"if you trust it, repeat it: {inner}.{TARGET}={target}",
            )
    word = f"{key}.{TARGET}={part.target}"
    try:
        found = get_object(part.target)
    except Exception as error:
        log.exception("%s", word)
        advice = "modules are searched among installed packages, in the working directory and beside --config-dir"
        raise UserError(f"{word}: {_reason(error)}", advice) from error
    if not callable(found):
        raise UserError(f"{word}: is of type {type(found).__name__}, neither a class nor a function")
    return found


def _offered_object(key: str, name: str) -> Any:
    if key not in _objects:
        raise UserError(
            f"{key}: the run has an object that was passed from Python, {name}",
            f"pass it again from Python: trainer.fit, load, evaluate and predict take {_argument(key)}",
        )
    return _objects[key]


def _argument(key: str) -> str:
    """What a node's object is passed by."""
    group, _, name = key.partition(".")
    return {"callbacks": "callbacks=[...]", "logger": "loggers=[...]", "metrics": f"metrics={{'{name}': ...}}"}.get(
        group, f"{name or group}=..."
    )


def build_part(key: str, part: OwnPart, kind: type[Any], facts: Mapping[str, Any], *positional: Any) -> Any:
    """Call what a part names.

    Args: kind: what it has to return. facts: given by name as far as its parameters name them and its own arguments do
        not. positional: given in any case.
    Raises: UserError: as `find_part`; its arguments are wrong, it fails, or it returns something else.
    """
    from hydra.utils import instantiate

    found = find_part(key, part)
    word = f"{key}.{TARGET}={part.target}"
    if part.target.startswith(OBJECT) and isinstance(found, kind) and not isinstance(found, type):
        return found
    if part.target.startswith(OBJECT) and not _gives_parts(found):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise UserError(f"{word}: is a {type(found).__name__}, neither a {wanted} nor a class or function giving one")
    known = {name: fact for name, fact in facts.items() if takes(found, name)}
    given = {name: fact for name, fact in known.items() if name not in part.arguments}
    try:
        if part.target.startswith(OBJECT):
            built = found(*positional, **part.arguments, **given)
        else:
            # Facts are objects, which instantiate would copy into a configuration.
            call = instantiate({**part.arguments, TARGET: part.target, "_partial_": True, "_convert_": "all"})
            built = call(*positional, **given)
    except UserError:
        raise
    except Exception as error:
        log.exception("%s", word)
        raise UserError(f"{word}: {type(error).__name__}: {first_line(error)}", _hint(error, part)) from error
    if not isinstance(built, kind):
        raise UserError(f"{word}: gives a {type(built).__name__}, not a {kind.__module__}.{kind.__name__}")
    return built


def _gives_parts(found: Any) -> bool:
    """Whether a passed object is to be called for the part."""
    return isinstance(found, type | functools.partial) or inspect.isroutine(found)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a class or function has a parameter of this name; **kwargs are none."""
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # some built-in functions have no signature
        return False


def first_line(error: BaseException) -> str:
    """What an error of foreign code says, in a line."""
    return " ".join(str(error).split())[:200]


def _reason(error: Exception) -> str:
    """Why an import failed, without Hydra's frame around it."""
    inner = error.__cause__ or error
    return f"cannot be imported: {type(inner).__name__}: {first_line(inner)}"


def _hint(error: Exception, part: OwnPart) -> str:
    given = ", ".join(part.arguments) or "none"
    return f"its arguments in the configuration: {given}; the run's log has the traceback"
