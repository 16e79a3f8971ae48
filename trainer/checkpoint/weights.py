"""Files of state and weights: torch's format for exact state, safetensors for weights alone."""

from __future__ import annotations

from collections.abc import Mapping
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

from trainer.errors import UserError


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes straight into the staging directory and reads tensors only.

    Lightning's stages in $TMPDIR and moves, which across devices is a copy that a kill can interrupt. The store is
    atomic already.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one file. Lightning logs errors, such as a full disk; here they are raised."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        """Read one file without running code from it. Raises: UserError: that is not possible."""
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except UnpicklingError as error:
            raise UserError(f"{path}: damaged, or would run code when it is read", "restore a checkpoint") from error


def read_state(file: Path) -> dict[str, Any]:
    """A checkpoint's content in host memory, its tensors read when they are used.

    Raises: UserError: it cannot be read without running code from it, or holds no weights.
    """
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except OSError as error:
        raise UserError(f"checkpoint={file}: {error.strerror or error}") from error
    except (UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"checkpoint={file}: no checkpoint, or one that would run code when it is read") from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise UserError(f"checkpoint={file}: holds no state_dict")
    return state


def read_weights(file: Path) -> dict[str, Tensor]:
    """Weights by name in host memory, from safetensors, a checkpoint with a state_dict, or a state_dict of torch's.

    Raises: UserError: it cannot be read without running code from it, is damaged, or holds no weights.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # torch cannot map files of its older format, which published weights still have.
        content = torch.load(file, map_location="cpu", mmap=is_zipfile(file), weights_only=True)
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
        save_file(distinct, staged, metadata={"format": "pt"})
        staged.replace(target)
