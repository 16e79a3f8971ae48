"""The verb convert: the weights of a checkpoint as safetensors, which needs neither this project nor DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.checkpoint.choose import find_checkpoint, weights_file
from trainer.checkpoint.weights import WEIGHTS, read_state, write_weights
from trainer.errors import EXIT_DONE, UserError, nearest
from trainer.run.files import CHECKPOINTS_DIR, MODEL_FILE, RECORD_FILE
from trainer.run.opening import open_stored_run

ARGUMENTS = ("run", "checkpoint", "out")
SUFFIX = ".safetensors"


def convert(words: Sequence[str]) -> int:
    """Write the weights of a checkpoint; `trainer convert --help` describes the arguments.

    Returns: exit code. Raises: UserError: no such checkpoint, a damaged one, one of another kind, or a wrong `out`.
    """
    arguments = _arguments(words)
    checkpoint, target = _choose(arguments)
    _check_target(target)
    file = weights_file(checkpoint)
    weights = read_state(file, WEIGHTS)["state_dict"]
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
    """Returns: (verified checkpoint, file to write)."""
    if "run" not in arguments:
        return find_checkpoint(arguments["checkpoint"]), Path(arguments["out"])
    run_dir = Path(arguments["run"])
    open_stored_run(run_dir)
    name = arguments.get("checkpoint", "best" if (run_dir / CHECKPOINTS_DIR / "best").exists() else "last")
    checkpoint = find_checkpoint(name, run_dir)
    # Not model.safetensors: that file holds the weights the run has ended with, and eval and predict read it as such.
    label = name if name in ("best", "last") else checkpoint.stem
    return checkpoint, Path(arguments.get("out", run_dir / f"model-{label}{SUFFIX}"))


def _check_target(target: Path) -> None:
    if target.suffix != SUFFIX:
        raise UserError(f"out={target}: weights are written as safetensors; name a file that ends in {SUFFIX}")
    if target.name == MODEL_FILE and (target.parent / RECORD_FILE).exists():
        raise UserError(
            f"out={target}: holds the final weights of a run, which eval and predict read",
            f"choose another name; eval run={target.parent} checkpoint=NAME evaluates a checkpoint as it is",
        )
