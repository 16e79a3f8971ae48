"""The verb serve: an export behind HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from trainer.errors import ConfigError, Problem, UserError
from trainer.serve.config import ServeConfig
from trainer.verbs.arguments import typed_arguments

PACKAGES = ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart")


def serve(words: Sequence[str]) -> int:
    """Serve; `trainer serve --help` describes the words. Returns: exit code. Raises: UserError."""
    config = typed_arguments(ServeConfig, words)
    if config.max_inputs > config.max_queue:
        advice = f"such a request never fits into max_queue={config.max_queue}"
        raise ConfigError([Problem("max_inputs", config.max_inputs, advice)])
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"serve: needs {', '.join(missing)}", 'pip install "hydra-lightning-trainer[serve]"')
    from trainer.serve.server import serve as run

    return run(config)
