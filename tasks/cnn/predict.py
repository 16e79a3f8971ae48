"""The verb predict: images in, a table of class names and probabilities out."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tasks.cnn.config import PredictArguments
from trainer.collectives import all_gather_json, decide_on_rank_0, has_peers
from trainer.data.images.raw import ImageFiles, find_images
from trainer.errors import UserError, printable

DIGITS = 6  # of probabilities; below that, float32 sums depend on the number of threads
FORMATS = (".csv", ".jsonl")
MAX_REASONS = 3  # printed

# An image's result, or the reason why it has none.
Outcome = dict[str, Any] | str


def predict_files(
    arguments: PredictArguments,
    run_dir: Path,
    class_names: Sequence[str],
    batch_size: int,
    classify: Callable[[Sequence[Path]], list[Outcome]],
) -> Path:
    """Classify images and write a row for each, sorted by file name. Called on every rank; rank 0 writes.

    Batches follow from the files alone and each is computed by one rank, so results do not depend on the ranks.
    Args: classify: results of a batch of files, in order. Returns: the file written.
    Raises: UserError: the input cannot be read, an image is bad and on_bad_row is error, or the output not written.
    """
    place = Path(arguments.input).expanduser()
    output = Path(arguments.output).expanduser() if arguments.output else run_dir / "predictions.csv"
    root, names, num_other = decide_on_rank_0(lambda: _checked(place, output))
    files = ImageFiles(Path(root), names, num_other)
    writer = RowWriter(output, class_names)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if has_peers() else (0, 1)
    reasons: list[str] = []
    decide_on_rank_0(writer.open)
    for first in range(0, len(names), batch_size * world_size):
        start = first + rank * batch_size
        numbers = range(start, min(start + batch_size, len(names)))
        own = classify([files.path(number) for number in numbers]) if numbers else []
        outcomes = [outcome for part in all_gather_json(own) for outcome in part]
        rows = list(zip(names[first:], outcomes, strict=False))
        bad = [f"{name}: {outcome}" for name, outcome in rows if isinstance(outcome, str)]
        if bad and arguments.on_bad_row == "error":
            decide_on_rank_0(writer.discard)
            advice = "on_bad_row=skip leaves such images out, on_bad_row=null writes rows without a result"
            raise UserError(f"input={place}: {bad[0]}", advice)
        kept = [(name, None if isinstance(outcome, str) else outcome) for name, outcome in rows]
        if arguments.on_bad_row == "skip":
            kept = [(name, outcome) for name, outcome in kept if outcome is not None]
        decide_on_rank_0(lambda kept=kept: writer.write(kept))
        reasons += bad
    decide_on_rank_0(writer.close)
    if rank == 0:
        _report(files, output, reasons, arguments.on_bad_row)
    return output


def _checked(place: Path, output: Path) -> tuple[str, list[str], int]:
    """The fields of the input's ImageFiles. Raises: UserError: the input cannot be read or the output not written."""
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"output={output}: not a format that is written; possible: {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise UserError(f"output={output}: no such directory: {output.parent}")
    if output.exists() and place.exists() and output.samefile(place):
        raise UserError(f"output={output}: this is the input")
    found = find_images(place)
    return str(found.root), found.names, found.num_other


def _report(files: ImageFiles, output: Path, reasons: list[str], on_bad_row: str | None) -> None:
    num_images = len(files.names)
    print(f"{num_images:,} {'image' if num_images == 1 else 'images'} -> {output}", file=sys.stderr)
    if reasons:
        fate = "left out" if on_bad_row == "skip" else "written without a result"
        shown = "; ".join(reasons[:MAX_REASONS]) + ("; ..." if len(reasons) > MAX_REASONS else "")
        print(printable(f"{len(reasons):,} of them cannot be used and are {fate}: {shown}"), file=sys.stderr)
    if files.num_other:
        are = "1 other file is" if files.num_other == 1 else f"{files.num_other:,} other files are"
        print(f"{are} not read: no suffix of an image", file=sys.stderr)


class RowWriter:
    """A table in the format of the path's suffix, which appears under its name when it is complete."""

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self.path, self.class_names = path, class_names
        self.staged = path.with_name(f".{path.name}.partial")

    def open(self) -> None:
        """Start the table. Raises: UserError: it cannot be written."""
        columns = ["file", "predicted_label", "probability", *(f"probability_{name}" for name in self.class_names)]
        self._append("w", [columns] if self.path.suffix.lower() == ".csv" else [])

    def write(self, rows: Sequence[tuple[str, dict[str, Any] | None]]) -> None:
        """Append rows of (file, result). Raises: UserError: they cannot be written."""
        self._append("a", [self._values(name, result) for name, result in rows])

    def close(self) -> None:
        """Put the table in place. Raises: UserError: it cannot be written."""
        try:
            with self.staged.open("rb") as file:
                os.fsync(file.fileno())
            self.staged.replace(self.path)
        except OSError as error:
            raise UserError(f"output={self.path}: cannot be written ({error.strerror})") from error

    def discard(self) -> None:
        """Remove what was written."""
        self.staged.unlink(missing_ok=True)

    def _values(self, name: str, result: dict[str, Any] | None) -> list[Any]:
        if result is None:
            return [name, *[None] * (2 + len(self.class_names))]
        probabilities = [round(value, DIGITS) for value in result["probabilities"].values()]
        return [name, result["label"], round(result["probability"], DIGITS), *probabilities]

    def _append(self, mode: str, rows: Sequence[list[Any]]) -> None:
        try:
            with self.staged.open(mode, newline="", encoding="utf-8") as file:
                if self.path.suffix.lower() == ".csv":
                    csv.writer(file, lineterminator="\n").writerows(rows)
                    return
                for name, label, probability, *rest in rows:
                    row = {"file": name, "predicted_label": label, "probability": probability}
                    row |= {f"probability_{name}": value for name, value in zip(self.class_names, rest, strict=True)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"output={self.path}: cannot be written ({error.strerror})") from error
