"""trainer.compose: the configuration of a run, without the run."""

from __future__ import annotations

from typing import Any

from trainer.api.words import taken_apart
from trainer.config.schema import Config
from trainer.launch.discover import planned_world
from trainer.verbs.prepare import prepare


def compose(*overrides: str) -> Config[Any, Any, Any]:
    """The typed and checked configuration that `trainer.fit` would train with: `compose("task=cnn").optimizer.lr`.

    It is frozen; `dataclasses.asdict` makes plain containers of it. It may be of another machine: that its devices
    are here is checked by `fit`. Values of environment variables are in it, so mind where it is printed.

    Args: overrides: as on the command line, "task=cnn"; also "--config-dir=DIR".
    Raises: UserError: with the text that the command line prints.
    """
    options, words = taken_apart("compose", overrides)
    return prepare(words, options, planned_world).config
