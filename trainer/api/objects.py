"""Objects that a call passes in place of parts of the configuration: their words, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.config.own_parts import OBJECT, TARGET, find_targets
from trainer.errors import UserError
from trainer.parts import first_line
from trainer.verbs.prepare import PreparedRun

# Called later, with what only the run knows, so they are passed unbuilt.
UNBUILT = ("optimizer", "scheduler")
MODEL, TRANSFORM = "model", "data.transform"


@dataclass
class PassedObjects:
    """Objects by the key of their node, and the words that name them in the run's configuration."""

    objects: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        single: Mapping[str, Any],
        callbacks: Sequence[Any] = (),
        loggers: Sequence[Any] = (),
        metrics: Mapping[str, Any] | None = None,
    ) -> PassedObjects:
        """Args: single: by key, None where none is passed. Raises: UserError: an object of the wrong kind."""
        passed = cls()
        several = {
            "callbacks": _named("callbacks", callbacks),
            "logger": _named("loggers", loggers),
            "metrics": _checked_names(metrics),
        }
        nodes = {key: value for key, value in single.items() if value is not None}
        nodes |= {f"{group}.{name}": value for group, members in several.items() for name, value in members.items()}
        for key, value in nodes.items():
            passed._add(key, value)
        return passed

    def _add(self, key: str, value: Any) -> None:
        if isinstance(value, str):
            raise UserError(f"{key}={value!r}: a text is no part", f'name a part by an override, "{key}={value}"')
        if key in UNBUILT and not callable(value):
            raise UserError(
                f"{key}: a {type(value).__name__} that is built already",
                "pass its class or functools.partial(CLASS, ...): it is built when the networks are on their device",
            )
        self.words.append(f"{key}.{TARGET}='{OBJECT}{_name(value)}'")
        self.objects[key] = self._recorded(key, value) if isinstance(value, functools.partial) else value

    def _recorded(self, key: str, value: functools.partial[Any]) -> Any:
        """What is left of a partial when its plain values are arguments of the node, and so part of the identity."""
        # A partial of a function is a transform by itself; any other one is called by the run.
        if value.args or (key == TRANSFORM and not isinstance(value.func, type)):
            return value
        plain = {name: given for name, given in value.keywords.items() if _is_plain(given)}
        self.words += [f"{key}.{name}={json.dumps(given)}" for name, given in plain.items()]
        rest = {name: given for name, given in value.keywords.items() if name not in plain}
        return functools.partial(value.func, **rest) if rest else value.func

    def refuse_other_processes(self, prepared: PreparedRun) -> None:
        """Raises: UserError: the ranks would be started by this process, and objects stay in it."""
        if self.objects and prepared.world.launcher == "elastic":
            first, *others = self.objects
            raise UserError(
                f"trainer.devices={prepared.world.local_world_size}: objects stay in this process; name {first} "
                f"{'and the others ' if others else ''}by _target_, use one device, or start the script with torchrun"
            )

    def refuse_members(self, words: Sequence[str]) -> None:
        """Raises: UserError: a word chooses what an object is passed for."""
        for word in words:
            if word.partition("=")[0] in self.objects:
                raise UserError(f"{word}: the call also passes an object for it; leave one of them out")

    def check_repeated(self, mapping: Mapping[str, Any]) -> None:
        """Args: mapping: a stored run's configuration. Raises: UserError: the run has no object in such a place."""
        targets = dict(find_targets(mapping))
        for key in self.objects:
            target = targets.get(key)
            if target is None or not target.startswith(OBJECT):
                has = f"{key}.{TARGET}={target}" if target else f"no {key} of your own"
                raise UserError(f"{key}: the run has {has}; its objects can be passed again, not replaced")

    def with_copied_model(self) -> dict[str, Any]:
        """The objects; the caller's network is not changed where a stored run's weights are loaded.

        Raises: UserError: it cannot be copied, as after training under a sharding strategy.
        """
        try:
            return {key: copy.deepcopy(value) if key == MODEL else value for key, value in self.objects.items()}
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"model: cannot be copied ({reason})", "pass its class, or a new network") from error


def _named(argument: str, objects: Sequence[Any]) -> dict[str, Any]:
    """Objects by the names of their classes, numbered where there are several of one."""
    if not isinstance(objects, list | tuple):
        raise UserError(f"{argument}: a list is needed, not a {type(objects).__name__}")
    named: dict[str, Any] = {}
    for value in objects:
        name = base = _name(value).rpartition(".")[2]
        number = 1
        while name in named:
            number += 1
            name = f"{base}_{number}"
        named[name] = value
    return named


def _checked_names(metrics: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise UserError(f"metrics: metrics by name are needed, as in {{'f1': ...}}, not a {type(metrics).__name__}")
    for name in metrics:
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"metrics: {name!r} is no name of letters, digits and underscores")
    return metrics


def _name(value: Any) -> str:
    """Module and name of a class or function, or of an object's class."""
    named: Callable[..., Any] = value.func if isinstance(value, functools.partial) else value
    if not hasattr(named, "__qualname__"):
        named = type(named)
    name = f"{named.__module__}.{named.__qualname__}"
    # Without the brackets of <lambda> and <locals>: it becomes the name of a directory.
    return "".join(letter for letter in name if letter.isalnum() or letter in "._")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)
