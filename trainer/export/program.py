"""The format torch_export: a traced program that torch loads without the classes of the network."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch.export import Dim
from torch.export.passes import move_to_device_pass

from trainer.errors import UserError
from trainer.export.devices import torch_device
from trainer.export.processing import Arrays
from trainer.export.quiet import quiet
from trainer.export.source import Source

PROGRAM_FILE = "model.pt2"
# Texts of the archive that torch resolves, evaluates as Python or pastes into generated code, by their JSON key, and
# what they may be. Expressions are of shapes: symbols, numbers, and sympy's functions of them.
SIZE = r"L\['\w+'\]\.size\(\)\[\d+\]"
ALLOWED = {
    "expr_str": re.compile(
        r"(Symbol|Integer|Rational|Pow|Mul|Add|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|positive|nonnegative|"
        r"negative|integer|True|False|'[a-z]+\d+'|\d+|[-+*/(),= ])*"
    ),
    "target": re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|torch\.sym_\w+|math\.\w+"),
    "name": re.compile(r"[\w.]*"),
    "guards_code": re.compile(rf"{SIZE} (<=|>=|==|<|>) ({SIZE}|\d+)"),
    "use_pickle": re.compile(r"False"),
}
# What torch records of each node for debugging: paths of this machine, and classes that it would import again.
DEBUGGING = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


def write(source: Source, folder: Path) -> None:
    """Write the traced network."""
    program = trace(source)
    # The example is not needed to run, and torch stores it as a pickle.
    program.example_inputs = None
    for node in program.graph.nodes:
        for key in DEBUGGING:
            node.meta.pop(key, None)
    with quiet():
        torch.export.save(program, folder / PROGRAM_FILE)


def trace(source: Source) -> torch.export.ExportedProgram:
    """The network with the dimensions of its example that vary."""
    example = source.model.example_inputs()
    shapes = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in example.dynamic.items()}
    return torch.export.export(source.model.network, (), dict(example.tensors), dynamic_shapes=shapes)


def open_network(folder: Path, gpu: int | None) -> Any:
    """The program on the CPU or a GPU, as a function of arrays.

    Raises: UserError: it is damaged, or would run code when it is loaded.
    """
    file = folder / PROGRAM_FILE
    refuse_code(file)
    device = torch_device(gpu)
    try:
        program = torch.export.load(file)
        # A traced program makes its constants on the device of its trace.
        module = (program if gpu is None else move_to_device_pass(program, device)).module()
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise UserError(f"{file}: damaged ({str(error).splitlines()[0][:160]})") from error

    @torch.inference_mode()
    def forward(arrays: Arrays) -> np.ndarray:
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return module(**tensors).float().cpu().numpy()

    return forward


def refuse_code(file: Path) -> None:
    """torch.export.load unpickles what the archive marks as pickled, and evaluates texts of it as Python.

    Raises: UserError: the archive holds a pickle that is more than tensors, or such a text.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                reason = _refusal(name, archive.read(name) if name.endswith((".json", ".pt")) else b"")
                if reason is not None:
                    raise UserError(
                        f"{file}: {name.partition('/')[2]} {reason}", "it is not one that export has written"
                    )
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{file}: damaged, or no program of torch.export") from error


def _refusal(name: str, content: bytes) -> str | None:
    """Why a member of the archive is refused; None where it is not."""
    if Path(name).name.startswith(("custom_obj", "opaque_obj")):
        return "is a pickle"
    if name.endswith(".pt") and content:
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError):
            return "is a pickle of more than tensors"
    if not name.endswith(".json"):
        return None
    try:
        texts = list(_texts(json.loads(content)))
    except ValueError:
        return "is no JSON"
    wrong = next((f"{key}: {value}" for key, value in texts if key in ALLOWED and not _is_allowed(key, value)), None)
    return None if wrong is None else f"has code in {wrong[:120]}"


def _is_allowed(key: str, value: Any) -> bool:
    return value is None or ALLOWED[key].fullmatch(str(value)) is not None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar below a JSON value, with its key."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)
    else:
        yield key, value
