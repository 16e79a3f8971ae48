"""trainer.load, evaluate and predict: what a run has trained, from its directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.api.objects import MODEL, TRANSFORM, PassedObjects
from trainer.api.process import exclusive, unchanged_generators, unchanged_process
from trainer.config.aliases import replace_aliases
from trainer.config.compose import parse_overrides
from trainer.errors import UserError
from trainer.parts import offered
from trainer.run.opening import open_stored_run
from trainer.verbs.evaluate import evaluate_on_rank
from trainer.verbs.predict import predict_on_rank
from trainer.verbs.stored_run import changed_config, on_stored_run, prepare_stored

if TYPE_CHECKING:
    import torch

    from trainer.inference import Inference

# Networks are built within seconds; a call that takes longer is training.
LOAD_WAITS_S = 60.0

RunDir = str | os.PathLike[str]


def load(
    run_dir: RunDir,
    *overrides: str,
    device: str | torch.device = "auto",
    precision: str | None = None,
    model: Any = None,
) -> Inference:
    """The model of a finished run, to be called on raw inputs: `load(run_dir)(inputs)`.

    It needs the run directory only, and no Lightning. Inputs are texts, pairs, rows; images as paths, bytes, Pillow
    images or arrays; for a DCGAN the number of images, or latent points. `model(inputs)` returns a list of results, as
    a rule dicts; `model.outputs(inputs)` the tensor before labels, such as logits (N, C).

    Args: overrides: as those of the verb predict, such as "plugins=[FOLDER]". device: auto is the first GPU, or the CPU
        where there is none. precision: as trainer.precision; None is the run's own. model: as passed to `fit`; it is
        copied.
    Raises: UserError: no such run, no weights yet, a damaged file, no such device.
    """
    import torch

    place = Path(run_dir)
    open_stored_run(place)
    words = [*overrides, *([f"trainer.precision={precision}"] if precision is not None else [])]
    stored = changed_config("predict", place, replace_aliases(parse_overrides(words)))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: {str(error).splitlines()[0]}") from error
    passed = PassedObjects.of({MODEL: model})
    passed.check_repeated(stored.mapping)
    with exclusive("load", LOAD_WAITS_S), unchanged_generators(), offered(passed.with_copied_model()):
        return stored.task.load_inference(stored.config, place, torch.device(name))


def evaluate(
    run_dir: RunDir, *overrides: str, model: Any = None, transform: Any = None, metrics: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Metrics of a trained model by name, as `python -m trainer eval run=DIR OVERRIDES` computes and writes them.

    Args: overrides: as on the command line: "checkpoint=last", "data=NAME", "trainer.devices=2", ... model, transform,
        metrics: as passed to `fit`; the network is copied.
    Raises: UserError: with the text that the command line prints. RankFailure: one of several ranks failed.
    """
    passed = PassedObjects.of({MODEL: model, TRANSFORM: transform}, metrics=metrics)
    with _verb("evaluate", overrides), _repeated("eval", run_dir, overrides, passed):
        return on_stored_run("eval", [f"run={os.fspath(run_dir)}", *overrides], evaluate_on_rank)


def predict(run_dir: RunDir, *overrides: str, model: Any = None, **arguments: Any) -> Path | None:
    """Apply a run to a file or folder, as `python -m trainer predict run=DIR WORDS` does: `predict(run, input=FILE)`.

    Args: overrides: as on the command line: "trainer.devices=2", ... model: as passed to `fit`; it is copied.
        arguments: those of the task, which `python -m trainer predict --help` lists.
    Returns: the file or folder written; None where the task only prints.
    Raises: UserError: with the text that the command line prints. RankFailure: one of several ranks failed.
    """
    words = [*overrides, *(f"{key}={_text(value)}" for key, value in arguments.items())]
    passed = PassedObjects.of({MODEL: model})
    with _verb("predict", words), _repeated("predict", run_dir, words, passed):
        place = on_stored_run("predict", [f"run={os.fspath(run_dir)}", *words], predict_on_rank)
    return None if place is None else Path(place)


@contextmanager
def _repeated(verb: str, run_dir: RunDir, words: Sequence[str], passed: PassedObjects) -> Iterator[None]:
    """Offer objects to a verb. Raises: UserError: the run has no such object, or starts other processes."""
    if passed.objects:
        open_stored_run(Path(run_dir))
        prepared = prepare_stored(verb, Path(run_dir), words)
        passed.check_repeated(prepared.mapping)
        passed.refuse_other_processes(prepared)
    with offered(passed.with_copied_model()):
        yield


@contextmanager
def _verb(name: str, words: tuple[str, ...] | list[str]) -> Iterator[None]:
    with exclusive(name), unchanged_process([f"trainer.{name}", *words]):
        try:
            yield
        except SystemExit as request:
            # Ranks that were started have ended on Ctrl-C, which is what the caller has typed.
            raise KeyboardInterrupt from request


def _text(value: Any) -> str:
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else json.dumps(value)
