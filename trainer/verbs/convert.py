"""Checkpoint -> model.safetensors: weights alone, in an open format that needs neither this project nor DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.checkpoint.store import CheckpointStore, find_damage
from trainer.checkpoint.weights import read_state, write_weights
from trainer.errors import EXIT_DONE, UserError, nearest
from trainer.run.files import MODEL_FILE, STATE_FILE
from trainer.run.record import Record

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
    names = [path.name for path in store.checkpoints()]
    if not names:
        raise UserError(f"run={run_dir}: no checkpoint yet")
    names += [name for name in ("best", "last") if (store.directory / name).exists()]
    name = arguments.get("checkpoint", "best" if "best" in names else "last")
    if name not in names:
        raise UserError(f"checkpoint={name}: not in {store.directory}; {nearest(name, names)}")
    return (store.directory / name).resolve(), Path(arguments.get("out", run_dir / MODEL_FILE))
