"""Checkpoint -> model.safetensors: weights alone, in an open format that needs neither this project nor DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.checkpoint.state import STATE_FILE
from trainer.checkpoint.store import CheckpointStore, find_damage
from trainer.errors import EXIT_DONE, UserError, nearest
from trainer.run import Record

MODEL_FILE = "model.safetensors"
ARGUMENTS = ("run", "checkpoint", "out")


def convert(words: Sequence[str]) -> int:
    """The verb: `run=DIR [checkpoint=best|last|step-00000040] [out=FILE]`, or `checkpoint=PATH out=FILE`.

    Returns: exit code. Raises: UserError: no such checkpoint, a damaged one, or one that is none of ours.
    """
    arguments = _arguments(words)
    checkpoint, target = _choose(arguments)
    file = checkpoint / STATE_FILE if checkpoint.is_dir() else checkpoint
    damage = find_damage(checkpoint) if checkpoint.is_dir() else None
    if damage is not None:
        raise UserError(f"checkpoint={checkpoint}: damaged ({damage})", "convert another one of the run")
    weights = read_state(file)["state_dict"]
    write_weights(weights, target)
    print(f"{target}: {len(weights)} tensors of {file}")
    return EXIT_DONE


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


def write_weights(weights: Mapping[str, Tensor], target: Path) -> None:
    """Write weights as safetensors; of tied ones the first name stays, as safetensors' own save_model does it."""
    distinct: dict[str, Tensor] = {}
    places: set[tuple[int, torch.Size]] = set()
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in places:
            continue
        places.add(place)
        distinct[name] = tensor.contiguous()
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}")
    save_file(distinct, staged, metadata={"format": "pt"})
    staged.replace(target)


def _arguments(words: Sequence[str]) -> dict[str, str]:
    arguments: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in ARGUMENTS:
            raise UserError(f"{word}: convert takes key=value; {nearest(key, ARGUMENTS)}")
        arguments[key] = value
    if "run" not in arguments and not {"checkpoint", "out"} <= arguments.keys():
        raise UserError("convert: needs run=DIR, or checkpoint=PATH and out=FILE")
    return arguments


def _choose(arguments: Mapping[str, str]) -> tuple[Path, Path]:
    if "run" not in arguments:
        return Path(arguments["checkpoint"]), Path(arguments["out"])
    run_dir = Path(arguments["run"])
    Record(run_dir).read()
    store = CheckpointStore(run_dir)
    names = [path.name for path in store.steps()]
    if not names:
        raise UserError(f"run={run_dir}: no checkpoint yet")
    names += [name for name in ("best", "last") if (store.directory / name).exists()]
    name = arguments.get("checkpoint", "best" if "best" in names else "last")
    if name not in names:
        raise UserError(f"checkpoint={name}: not in {store.directory}; {nearest(name, names)}")
    return (store.directory / name).resolve(), Path(arguments.get("out", run_dir / MODEL_FILE))
