"""Probes of an export: inputs, and its outputs when it was proved. A server that opens it compares them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import UserError
from trainer.export.formats import FORMATS
from trainer.export.model import ExportedModel, ExportedNetwork
from trainer.run.files import read_json

PROBES_FILE = "probes.json"
OUTPUTS_FILE = "probes.npy"


@dataclass(frozen=True)
class Probes:
    """inputs: raw, from the shortest to the longest. outputs: float32; axis 0 is the input."""

    inputs: list[Any]
    outputs: np.ndarray


def write_probes(folder: Path, network: ExportedNetwork, inputs: Sequence[Any]) -> None:
    """Record what a proved network gives. Inputs are written as POST /predict takes them."""
    given = [network.processing.inputs.to_json(value) for value in inputs]
    (folder / PROBES_FILE).write_text(json.dumps(given) + "\n", encoding="utf-8")
    np.save(folder / OUTPUTS_FILE, network.outputs(inputs), allow_pickle=False)


def read_probes(folder: Path, network: ExportedNetwork) -> Probes:
    """Raises: UserError: there are none, or a file is damaged."""
    try:
        given = read_json(folder / PROBES_FILE)
        outputs = np.load(folder / OUTPUTS_FILE, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: has no {PROBES_FILE} and {OUTPUTS_FILE}; export the run again") from error
    # MemoryError: the header of the array claims more than there is.
    except (OSError, ValueError, EOFError, RecursionError, MemoryError) as error:
        raise UserError(f"{folder}: {PROBES_FILE} or {OUTPUTS_FILE} is damaged") from error
    if not isinstance(outputs, np.ndarray) or outputs.dtype != np.float32 or outputs.ndim == 0:
        raise UserError(f"{folder}: {OUTPUTS_FILE} is damaged: it is no array of float32")
    if given == []:
        raise UserError(f"{folder}: has no probes in {PROBES_FILE}; export the run again")
    if not isinstance(given, list) or len(given) != len(outputs):
        raise UserError(f"{folder}: {PROBES_FILE} has not as many inputs as {OUTPUTS_FILE} has outputs")
    return Probes([network.processing.inputs.from_json(value) for value in given], outputs)


def check_probes(folder: Path, model: ExportedModel, probes: Probes) -> None:
    """Raises: UserError: the export computes something else here than where it was proved."""
    found = model.outputs(probes.inputs)
    tolerance = FORMATS[model.manifest.format].tolerance
    unit = tolerance.unit(probes.outputs)
    if found.shape != probes.outputs.shape:
        raise UserError(
            f"{folder}: outputs of its probes have the shape {found.shape} instead of {probes.outputs.shape}"
        )
    difference = np.abs(found - probes.outputs)
    for name, value, most in (
        ("at most", difference.max(), tolerance.largest * unit),
        ("on average", difference.mean(), tolerance.mean * unit),
    ):
        # Not `>`: a difference that is not a number is none that is allowed.
        if not value <= most:
            raise UserError(
                f"{folder}: outputs of its probes differ by {value:.3g} {name} from those recorded at its export",
                f"allowed: {most:.3g}; export the run again, on this kind of machine",
            )
