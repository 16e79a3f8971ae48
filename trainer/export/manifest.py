"""manifest.json of an export: what it is, from where, how it was proved, and the checksum of every file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.errors import UserError
from trainer.export.formats import FORMATS
from trainer.run.files import MANIFEST_FILE

PROCESSING_FILE = "processing.json"


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileDigest(_Plain):
    """Of one file. size: bytes."""

    sha256: str
    size: int


class Parity(_Plain):
    """How far the export is from the run's network in float32.

    measured_on: "test", "val", or "example inputs" with `reason`, where the evaluation data was not available.
    samples: raw inputs. largest, mean: absolute differences of outputs. shapes: of the largest argument in each kind of
    batch. metric, of_run, of_export: its name and values; None on example inputs.
    """

    measured_on: str
    reason: str | None
    samples: int
    largest: float
    mean: float
    shapes: list[list[int]]
    metric: str | None
    of_run: float | None
    of_export: float | None


class Manifest(_Plain):
    """Of an export.

    run: directory, hash and W&B id. git: state of the code that exported. created: UTC. bound_to: device or instruction
    set that it runs on alone; None where it runs anywhere. arguments: dtype and shape of each, a name for a dimension
    that varies. computes_padding: whether an input costs as much as the longest of its batch. files: by path relative
    to the folder, all but the manifest itself.
    """

    format: str
    task: str
    run: dict[str, Any]
    git: dict[str, Any] | None
    created: str
    versions: dict[str, str | None]
    bound_to: str | None
    arguments: dict[str, dict[str, Any]]
    computes_padding: bool = True
    parity: Parity
    files: dict[str, FileDigest]


def digests(folder: Path) -> dict[str, FileDigest]:
    """Of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export, every file of which is as it says.

    Raises: UserError: as parse_manifest, or a file is missing or changed, or one lies outside of the folder.
    """
    manifest = parse_manifest(folder)
    check_files(folder, manifest)
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """What the manifest of an export says. Raises: UserError: there is none, it is damaged, or of another version."""
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{folder}: no export; {MANIFEST_FILE} cannot be read") from error
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        raise UserError(f"{path}: not that of an export: {where} {detail['msg']}") from error
    if manifest.format not in FORMATS:
        raise UserError(f"{folder}: format {manifest.format} is not known to this version")
    if not isinstance(manifest.run.get("directory"), str):
        raise UserError(f"{path}: not that of an export: run.directory is missing")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises: UserError: a file is missing or changed, is not in the manifest, or lies outside of the folder."""
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).is_absolute() or not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder}: {name} is outside of the export's folder")
        if not file.is_file():
            raise UserError(f"{folder}: {name} is missing; export the run again")
        if _digest(file) != expected:
            raise UserError(f"{folder}: {name} has another checksum than in {MANIFEST_FILE}; export the run again")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    unknown = sorted(present - manifest.files.keys() - {MANIFEST_FILE})
    if unknown:
        raise UserError(f"{folder}: {unknown[0]} is not in {MANIFEST_FILE}")


def _digest(path: Path) -> FileDigest:
    with path.open("rb") as file:
        return FileDigest(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=path.stat().st_size)
