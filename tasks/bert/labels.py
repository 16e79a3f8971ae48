"""Labels of a set: the names the data gives, or those found in the training split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import UserError

if TYPE_CHECKING:
    import datasets

UNLABELLED = -1  # how sets on the hub mark a split whose labels are kept back


@dataclass(frozen=True)
class Labels:
    """Classes by name, or scores.

    names: in the order of the class numbers; None for scores. source: where the names come from, for the record.
    """

    column: str
    names: list[str] | None
    source: str

    @classmethod
    def of(cls, train: datasets.Dataset, column: str, kind: str) -> Labels:
        """The labels that the training split has. Raises: UserError: there are none, or fewer than two classes."""
        if kind == "regression":
            return cls(column, None, "scores")
        given = getattr(train.features[column], "names", None)
        names = list(given) if given else sorted(set(_class_names(train, "train", column)), key=_natural)
        if len(names) < 2:
            raise UserError(f"data.label={column}: the training split has only the class {', '.join(names)}")
        return cls(column, names, "ClassLabel of the data" if given else "found in the training split")

    def encode(self, split: datasets.Dataset, name: str) -> np.ndarray:
        """Labels of a split: (N,) int64 class numbers or float32 scores.

        Raises: UserError: a label is missing, or not among those of the training split.
        """
        if self.names is None:
            return _scores(split, name, self.column)
        numbers = {class_name: number for number, class_name in enumerate(self.names)}
        found = _class_names(split, name, self.column)
        for row, class_name in enumerate(found):
            if class_name not in numbers:
                raise UserError(
                    f"data.label={self.column}: row {row} of the {name} split has the label {class_name!r}",
                    f"the training split has {_listing(self.names)}",
                )
        return np.fromiter((numbers[class_name] for class_name in found), dtype=np.int64, count=len(found))


def is_unlabelled(split: datasets.Dataset, column: str) -> bool:
    """Whether a split's labels are kept back, as in the test splits of GLUE."""
    return all(value == UNLABELLED or value is None for value in _values(split, column))


def _values(split: datasets.Dataset, column: str) -> list[Any]:
    # Arrow's own conversion: a third of the time of decoding row by row.
    return split.with_format("arrow")[:][column].to_pylist()


def _class_names(split: datasets.Dataset, name: str, column: str) -> list[str]:
    given = getattr(split.features[column], "names", None)
    values = _values(split, column)
    for row, value in enumerate(values):
        if value is None or value == "" or (given and value == UNLABELLED):
            raise UserError(f"data.label={column}: row {row} of the {name} split has no label")
        if isinstance(value, float) and not value.is_integer():
            advice = "task.kind=regression learns scores"
            raise UserError(
                f"data.label={column}: row {row} of the {name} split has {value}, which is no class", advice
            )
    return [given[value] if given else str(int(value) if isinstance(value, float) else value) for value in values]


def _scores(split: datasets.Dataset, name: str, column: str) -> np.ndarray:
    values = _values(split, column)
    for row, value in enumerate(values):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(f"data.label={column}: row {row} of the {name} split has {value!r}, which is no score")
    return np.asarray(values, dtype=np.float32)


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by value before words by letter, so that class 10 stands after class 9."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def _listing(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])} and {len(names) - 12} more"
