"""Labels of a set: class names that the data declares or the training split contains, or scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.texts.place import row_name
from trainer.data.texts.tables import LABEL, LINE
from trainer.errors import UserError

if TYPE_CHECKING:
    import datasets

UNLABELLED = -1  # how sets on the hub mark a split whose labels are not published
NO_LABELS = frozenset({None, "", UNLABELLED, str(UNLABELLED)})


@dataclass(frozen=True)
class Labels:
    """Classes by name, or scores.

    column: as configured, for messages. names: in the order of the class numbers; None for scores. source: where the
    names come from, for the record.
    """

    column: str
    names: list[str] | None
    source: str

    @classmethod
    def of(cls, train: datasets.Dataset, where: str, column: str, kind: str) -> Labels:
        """The labels of the training split. Args: where: the split, for messages.

        Raises: UserError: a row has no label, a label is not of the kind, or there are fewer than two classes.
        """
        if kind == "regression":
            return cls(column, None, "scores")
        given = getattr(train.features[LABEL], "names", None)
        names = list(given) if given else sorted(set(_class_names(train, where, column)), key=_natural)
        if len(names) < 2:
            raise UserError(f"data.label={column}: {where} has only the class {', '.join(names)}")
        return cls(column, names, "ClassLabel of the data" if given else "found in the training split")

    def encode(self, split: datasets.Dataset, where: str) -> np.ndarray:
        """Labels of a split: (N,) int64 class numbers or float32 scores.

        Raises: UserError: a label is missing, or is not among those of the training split.
        """
        if self.names is None:
            return _scores(split, where, self.column)
        numbers = {class_name: number for number, class_name in enumerate(self.names)}
        found = _class_names(split, where, self.column)
        unknown = list(dict.fromkeys(class_name for class_name in found if class_name not in numbers))
        if unknown:
            kind = "label" if len(unknown) == 1 else "labels"
            raise UserError(
                f"{_row(split, where, found.index(unknown[0]))}: data.label={self.column}: unknown {kind} "
                f"{listing(unknown)}",
                f"the training split of the run has {listing(self.names)}",
            )
        return np.fromiter((numbers[class_name] for class_name in found), dtype=np.int64, count=len(found))


def is_unlabelled(split: datasets.Dataset) -> bool:
    """Whether no row of a split has a label, as in the test splits of GLUE."""
    return all(value in NO_LABELS for value in _values(split))


def listing(names: Sequence[str]) -> str:
    """Names for a line of the terminal: the first twelve."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])} and {len(names) - 12} more"


def _row(split: datasets.Dataset, where: str, index: int) -> str:
    line: Any = split[index][LINE] if LINE in split.column_names else None
    return row_name(where, index + 1, line)


def _values(split: datasets.Dataset) -> list[Any]:
    # Arrow's own conversion takes a third of the time of decoding row by row.
    return split.with_format("arrow")[:][LABEL].to_pylist()


def _class_names(split: datasets.Dataset, where: str, column: str) -> list[str]:
    given = getattr(split.features[LABEL], "names", None)
    values = _values(split)
    for index, value in enumerate(values):
        if value is None or value == "" or (given and value == UNLABELLED):
            raise UserError(f"{_row(split, where, index)}: data.label={column}: there is no label")
    fraction = _first_fraction(values)
    if fraction is not None:
        raise UserError(
            f"{_row(split, where, fraction)}: data.label={column}: {values[fraction]} is no class",
            "the labels are numbers; task.kind=regression learns scores",
        )
    return [given[value] if given else str(int(value) if isinstance(value, float) else value) for value in values]


def _first_fraction(values: Sequence[Any]) -> int | None:
    """Index of the first label that is a fraction, where all labels are numbers."""
    first = None
    for index, value in enumerate(values):
        number = _number(value)
        if number is None:
            return None
        if first is None and not number.is_integer():
            first = index
    return first


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _scores(split: datasets.Dataset, where: str, column: str) -> np.ndarray:
    values = _values(split)
    numbers = [_number(value) for value in values]
    if None in numbers:
        index = numbers.index(None)
        value = values[index]
        lack = "there is no score" if value in (None, "") else f"{value} is no score"
        raise UserError(f"{_row(split, where, index)}: data.label={column}: {lack}", "a score is a number such as 0.5")
    return np.asarray(numbers, dtype=np.float32)


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by value before words by letter, so that class 10 follows class 9."""
    number = _number(name)
    return (1, 0.0, name) if number is None else (0, number, name)
