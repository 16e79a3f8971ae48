"""The exports of a run that a deployment is written from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.export.formats import FORMATS
from trainer.export.manifest import PROCESSING_FILE, Manifest, read_manifest
from trainer.export.onnx_file import MODEL_FILE
from trainer.export.processing import PlainProcessing
from trainer.run.files import EXPORT_DIR, MANIFEST_FILE
from trainer.run.record import Record

LONGEST_NAME = 63  # of a label in DNS, which names of Kubernetes are


@dataclass(frozen=True)
class Export:
    """One export whose files are as its manifest says."""

    folder: Path
    manifest: Manifest
    processing: PlainProcessing

    @property
    def size_mib(self) -> float:
        """Of its files."""
        return sum(file.size for file in self.manifest.files.values()) / 2**20


@dataclass(frozen=True)
class Source:
    """exports: by format, at least one. record: run.json."""

    run_dir: Path
    record: Mapping[str, Any]
    exports: Mapping[str, Export]

    @property
    def name(self) -> str:
        """The run's name in letters, digits and hyphens."""
        name = re.sub(r"[^a-z0-9]+", "-", self.run_dir.resolve().name.lower())
        return name[:LONGEST_NAME].strip("-") or "model"

    def graph(self, target: str) -> Export:
        """The first export that is an ONNX graph. Raises: UserError: there is none."""
        found = next((each for each in self.exports.values() if (each.folder / MODEL_FILE).is_file()), None)
        if found is None:
            raise UserError(
                f"deploy={target}: needs an export in ONNX", f"python -m trainer export run={self.run_dir} format=onnx"
            )
        return found


def read_source(run_dir: Path, formats: Sequence[str]) -> Source:
    """Args: formats: that are deployed; where there are none, all that the run has, with onnx first.

    Raises: UserError: no such run or export, or a file of it is missing or changed.
    """
    record = Record(run_dir).read()
    place = run_dir / EXPORT_DIR
    present = [name for name in FORMATS if (place / name / MANIFEST_FILE).is_file()]
    chosen = list(formats) or sorted(present, key=lambda name: name != "onnx")
    if not chosen:
        raise UserError(f"run={run_dir}: nothing is exported yet; name formats, as in format=onnx")
    return Source(run_dir, record, {name: _read(place / name) for name in chosen})


def _read(folder: Path) -> Export:
    manifest = read_manifest(folder)
    processing = PlainProcessing.model_validate_json((folder / PROCESSING_FILE).read_bytes())
    return Export(folder, manifest, processing)
