"""Exports of a run, and faults planted in them."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.export.gate import Gate
from trainer.export.manifest import digests
from trainer.export.source import Source
from trainer.inference import ExampleInputs, ExportableInference, Processing
from trainer.run.files import MANIFEST_FILE
from trainer.run.stored_config import read_stored_config
from trainer.verbs.export import open_run


def opened(run: Path) -> tuple[Source, Gate]:
    """What the verb exports a run from, and what it compares exports on."""
    return open_run(run, read_stored_config(run), data_is_named=False)


def rewrite_manifest(folder: Path) -> None:
    """Give a changed export the checksums of its files, as one who plants something would."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"] = {name: digest.model_dump() for name, digest in digests(folder).items()}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def swapped_weights(source: Source) -> Source:
    """Two outputs of the last layer exchanged, or the first of its channels where it has one output."""
    model = copy.copy(source.model)
    model.network = copy.deepcopy(source.model.network)
    weight = [tensor for tensor in model.network.parameters() if tensor.dim() > 1][-1]
    with torch.no_grad():
        weight.copy_(weight.flip(0) if len(weight) > 1 else weight.flip(1))
    return replace(source, model=model)


def changed_processing(change: Callable[[dict[str, Any], dict[str, Any], dict[str, str]], None]) -> Any:
    """A fault in inputs, outputs or files of the processing."""

    @contextmanager
    def plant(model: ExportableInference) -> Iterator[None]:
        good = model.processing()
        inputs, outputs, files = dict(good.inputs), dict(good.outputs), dict(good.files)
        change(inputs, outputs, files)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "processing", lambda self: Processing(inputs, outputs, files))
            yield

    return plant


@contextmanager
def fixed_batch(model: ExportableInference) -> Iterator[None]:
    """The example says that no dimension varies."""
    good = model.example_inputs()
    fixed = ExampleInputs(good.tensors, {name: {} for name in good.tensors})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "example_inputs", lambda self: fixed)
        yield
