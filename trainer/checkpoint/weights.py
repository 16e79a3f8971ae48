"""Files of state and weights: torch's format for exact state, safetensors for weights alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import is_zipfile

import torch
from pytorch_lightning.plugins import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoint.shards import SHARDED, SHARDS_DIR, join_shards
from trainer.errors import UserError

WEIGHTS = ("state_dict",)


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes straight into the staging directory and reads tensors only.

    Lightning's stages in $TMPDIR and moves, which across devices is a copy that a kill can interrupt. The store is
    atomic already.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one file. Lightning logs errors, such as a full disk; here they are raised."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_state(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        """Read one file without running code from it. Raises: UserError: that is not possible."""
        try:
            return _joined(torch.load(path, map_location=map_location, weights_only=True), Path(path), SHARDED)
        except UnpicklingError as error:
            raise UserError(f"{path}: damaged, or would run code when it is read", "restore a checkpoint") from error


def write_state(state: Mapping[str, Any], file: Path) -> None:
    """Write a checkpoint's content. Raises: OSError: the storage refuses it."""
    try:
        with file.open("wb") as opened:
            torch.save(state, opened)
    except RuntimeError as error:
        # torch's writer goes on after a write has failed, and reports that it is at another place than it should be.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def read_state(file: Path, parts: Collection[str] = SHARDED) -> dict[str, Any]:
    """A checkpoint's content in host memory; tensors of a full one are read when they are used.

    Args: parts: of the parts that may be in shards, those to read.
    Raises: UserError: it cannot be read without running code from it, or holds no weights.
    """
    try:
        state = _joined(torch.load(file, map_location="cpu", mmap=True, weights_only=True), file, parts)
    except OSError as error:
        raise UserError(f"checkpoint={file}: {error.strerror or error}") from error
    except (UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"checkpoint={file}: no checkpoint, or one that would run code when it is read") from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise UserError(f"checkpoint={file}: holds no state_dict")
    return state


def _joined(content: Any, file: Path, parts: Collection[str]) -> Any:
    """A state with full tensors in these parts, where it was written in shards beside its file."""
    shards = file.parent / SHARDS_DIR
    return join_shards(content, shards, parts) if isinstance(content, Mapping) and shards.is_dir() else content


def read_weights(file: Path) -> dict[str, Tensor]:
    """Weights by name in host memory, from safetensors, a checkpoint with a state_dict, or a state_dict of torch's.

    Raises: UserError: it cannot be read without running code from it, is damaged, or holds no weights.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # torch cannot map files of its older format, which published weights still have.
        content = _joined(torch.load(file, map_location="cpu", mmap=is_zipfile(file), weights_only=True), file, WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{file}: damaged, or no safetensors ({error})") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: damaged, no file of torch's, or one that would run code when it is read") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    weights = {str(name): value for name, value in (state or {}).items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{file}: holds no weights by name")
    return weights


def first_mismatch(error: RuntimeError) -> str:
    """The first tensor that does not fit; torch lists them all, after a line that names the class."""
    first = str(error).strip().split("\n")[1:2] or [str(error)]
    return first[0].strip()[:200]


def write_weights(weights: Mapping[str, Tensor], target: Path) -> None:
    """Write weights as safetensors, tied ones once under their first name, as safetensors' save_model does."""
    distinct: dict[str, Tensor] = {}
    places: set[tuple[int, torch.Size]] = set()
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in places:
            continue
        places.add(place)
        distinct[name] = tensor.contiguous()
    target.parent.mkdir(parents=True, exist_ok=True)
    # In a directory that nobody else can have prepared: safetensors follows links.
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        staged = Path(folder) / target.name
        staged.touch()
        mode = staged.stat().st_mode
        save_file(distinct, staged, metadata={"format": "pt"})
        # safetensors gives its files a mode of its own; those of a run have the one that the umask gives.
        staged.chmod(mode)
        staged.replace(target)
