"""Write a format: staged beside its place, proved, described by a manifest, renamed."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.export.formats import FORMATS
from trainer.export.gate import Gate, NotEqual
from trainer.export.manifest import PROCESSING_FILE, Manifest, digests
from trainer.export.model import open_export
from trainer.export.probes import write_probes
from trainer.export.source import Source
from trainer.run.files import EXPORT_DIR, MANIFEST_FILE, LockHeld, lock_file, replace_folder, write_json, write_text
from trainer.run.provenance import git_state
from trainer.run.record import Record, now

VERSIONS = ("torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "tokenizers", "numpy")


def export_format(source: Source, gate: Gate, name: str) -> tuple[Path, Manifest]:
    """Write one format to RUN/export/NAME. A failure leaves what was there.

    Returns: its folder and manifest. Raises: NotEqual: it is not the run's network. UserError: it cannot be written.
    """
    place = source.run_dir / EXPORT_DIR / name
    staged = place.with_name(f".{name}")
    try:
        place.parent.mkdir(exist_ok=True)
        lock = lock_file(place.parent / f".{name}.lock", f"process {os.getpid()}")
    except LockHeld as held:
        raise UserError(f"{place}: is being written by {held.holder}; try again when it has ended") from held
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror})") from error
    with lock:
        shutil.rmtree(staged, ignore_errors=True)  # of an export that was interrupted
        staged.mkdir()
        try:
            manifest = _fill(source, gate, name, staged)
            replace_folder(staged, place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return place, manifest


def _fill(source: Source, gate: Gate, name: str, folder: Path) -> Manifest:
    write_processing(source, folder)
    try:
        import_module(f"trainer.export.{FORMATS[name].module}").write(source, folder)
    except UserError:
        raise
    except Exception as error:  # whatever an exporter raises: the network has something that the format has not
        reason = " ".join(str(error).split())[:240]
        raise NotEqual(f"cannot be written: {type(error).__name__}: {reason}") from error
    try:
        candidate = open_export(folder, name)
    except UserError as error:
        raise NotEqual(f"what was written cannot be loaded: {error.lines[0]}") from error
    parity = gate.prove(candidate, FORMATS[name].tolerance)
    write_probes(folder, candidate, source.model.probes())
    example = source.model.example_inputs()
    bound_to = None
    if FORMATS[name].is_native:
        from trainer.export.compiled import instruction_set

        bound_to = instruction_set()
    record = Record(source.run_dir).read()
    manifest = Manifest(
        format=name,
        task=source.model.config.task.name,
        run={"directory": str(source.run_dir), "hash": record.get("hash"), "wandb_id": record.get("wandb_id")},
        git=git_state(with_diff=False),
        created=now(),
        versions={"python": platform.python_version(), **{package: _version(package) for package in VERSIONS}},
        bound_to=bound_to,
        arguments={
            key: {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": [example.dynamic[key].get(axis, size) for axis, size in enumerate(tensor.shape)],
            }
            for key, tensor in example.tensors.items()
        },
        computes_padding=not (FORMATS[name].skips_padding and source.model.can_skip_padding),
        parity=parity,
        files=digests(folder),
    )
    write_json(folder / MANIFEST_FILE, manifest.model_dump())
    return manifest


def write_processing(source: Source, folder: Path) -> None:
    """Write processing.json and the files that it names."""
    processing = source.model.processing()
    plain: dict[str, Any] = {"inputs": processing.inputs, "outputs": processing.outputs}
    (folder / PROCESSING_FILE).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    for name, text in processing.files.items():
        write_text(folder / name, text)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
