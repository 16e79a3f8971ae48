"""Distributed training from one call; the public names are below, see docs/python.md.

Everything is imported when it is first used: `import trainer` loads neither torch nor Hydra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.version import __version__

if TYPE_CHECKING:
    from trainer.api.configuration import compose
    from trainer.api.tables import runs
    from trainer.api.trained import evaluate, load, predict
    from trainer.api.training import RunResult, fit
    from trainer.errors import UserError

__all__ = ["fit", "RunResult", "load", "evaluate", "predict", "compose", "runs", "UserError", "__version__"]

_MODULES = {
    "compose": "trainer.api.configuration",
    "runs": "trainer.api.tables",
    "evaluate": "trainer.api.trained",
    "load": "trainer.api.trained",
    "predict": "trainer.api.trained",
    "RunResult": "trainer.api.training",
    "fit": "trainer.api.training",
    "UserError": "trainer.errors",
}


def __getattr__(name: str) -> Any:
    """A public name, imported on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
