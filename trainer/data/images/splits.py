"""A configured image set -> decoded pixels and labels of each split it brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trainer.data.images.cache import ImageCache, image_cache, moments
from trainer.data.images.config import ImageDataConfig, StoredImagesConfig
from trainer.data.images.decode import ImageForm, Unusable, decode_all, image_form, open_image, to_form
from trainer.data.sources import Source, load_splits, split_fingerprint
from trainer.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets

NO_LABEL = -1
LABEL_NAMES = ("label", "labels", "class")


@dataclass(frozen=True)
class ImageSplit:
    """One split as it came.

    pixels (N, C, H, W) uint8. labels (N,) int64, NO_LABEL where the set has none. sums, squares (N, C) int64: see
    ImageCache. rows (M,) int64: positions of the images that can be used. sha256: of the pixels.
    """

    pixels: np.ndarray
    labels: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    rows: np.ndarray
    sha256: str


@dataclass(frozen=True)
class ImageSplits:
    """All splits of a set by name (train, and as far as there are any val and test). class_names: empty without labels.
    notes: what the user should know about how the set was read, a line each."""

    splits: Mapping[str, ImageSplit]
    class_names: Sequence[str]
    source: str
    notes: Sequence[str]


def read_splits(data: ImageDataConfig) -> ImageSplits:
    """Read and decode a set. Raises: UserError: it is not there, or not as configured."""
    return _stored(data) if isinstance(data, StoredImagesConfig) else _digits(data)


def _digits(data: ImageDataConfig) -> ImageSplits:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 with 17 levels (Alpaydin and Kaynak, UCI 1998)."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(image) for image in levels]
    form = image_form(images[0], data.image_size, data.resize, data.channels)
    try:
        pixels = np.stack([to_form(image, form) for image in images])
    except Unusable as error:
        raise UserError(f"data=digits: {error}") from error
    sums, squares = moments(pixels)
    labels = digits.target.astype(np.int64)
    split = ImageSplit(pixels, labels, sums, squares, np.arange(len(pixels)), "embedded")
    return ImageSplits({"train": split}, [str(name) for name in digits.target_names], "scikit-learn's digits", [])


def _stored(data: StoredImagesConfig) -> ImageSplits:
    source = Source(data.hub_id, data.subset, data.path)
    tables = load_splits(source)
    image_column = _image_column(tables["train"], data.image_column, source)
    label_column = _label_column(tables["train"], data.label_column, source)
    notes: list[str] = []
    labels, class_names = _labels(tables, label_column, source, notes)
    form = _form(tables["train"], image_column, data, source)
    splits = {}
    for name, split_labels in labels.items():
        cache = _decoded(tables[name], image_column, form, f"{source}, {name} split")
        rows = _usable(cache, len(split_labels), data.on_corrupt, f"{source}, {name} split", notes)
        splits[name] = ImageSplit(cache.pixels, split_labels, cache.sums, cache.squares, rows, cache.sha256)
    return ImageSplits(splits, class_names, str(source), notes)


def _image_column(table: datasets.Dataset, chosen: str | None, source: Source) -> str:
    """The column of images: the one chosen, or the only one that has their type or holds encoded files."""
    import datasets

    found = [
        name
        for name, feature in table.features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)
    ]
    return _one_column("image", chosen, found, list(table.features), source)


def _label_column(table: datasets.Dataset, chosen: str | None, source: Source) -> str | None:
    """The column of classes: the one chosen, the only one of that type, or one called label; None without one."""
    import datasets

    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    found = found or [name for name in LABEL_NAMES if name in table.features][:1]
    if chosen is None and not found:
        return None
    return _one_column("label", chosen, found, list(table.features), source)


def _one_column(kind: str, chosen: str | None, found: list[str], columns: list[str], source: Source) -> str:
    key = f"data.{kind}_column"
    if chosen is not None:
        if chosen not in columns:
            raise UserError(f"{key}={chosen}: {source} has no such column; {nearest(chosen, columns)}")
        return chosen
    if len(found) != 1:
        reason = f"which of {', '.join(found)} is meant" if found else f"no column of {kind}s is found"
        raise UserError(
            f"{key}=null: {reason} in {source}", f"name it with {key}=COLUMN; columns: {', '.join(columns)}"
        )
    return found[0]


def _labels(
    tables: Mapping[str, datasets.Dataset], column: str | None, source: Source, notes: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Class numbers of each split that has labels, and the classes' names.

    Classes are those of the ClassLabel, else the distinct values of the training split in order.
    """
    import datasets

    if column is None:
        return {name: np.full(len(table), NO_LABEL, dtype=np.int64) for name, table in tables.items()}, []
    values = {name: table.with_format("arrow")[:][column].to_pylist() for name, table in tables.items()}
    for name in [name for name in values if name != "train" and set(values[name]) <= {NO_LABEL, None}]:
        notes.append(f"the {name} split has no labels and is left out")
        del values[name]
    feature = tables["train"].features[column]
    if isinstance(feature, datasets.ClassLabel):
        class_names = list(feature.names)
        known = {number: number for number in range(len(class_names))}
    else:
        distinct = sorted(set(values["train"]) - {None}, key=lambda value: (str(type(value)), value))
        if any(not isinstance(value, (int, str)) for value in distinct):
            raise UserError(f"data.label_column={column}: classes are numbers or names, not {distinct[0]!r}")
        class_names, known = [str(value) for value in distinct], {value: i for i, value in enumerate(distinct)}
    return {
        name: _class_numbers(name, split, known, class_names, column, source) for name, split in values.items()
    }, class_names


def _class_numbers(
    split: str, values: list[Any], known: Mapping[Any, int], class_names: list[str], column: str, source: Source
) -> np.ndarray:
    strange = next((row for row, value in enumerate(values) if value not in known), None)
    if strange is not None:
        classes = (
            f"0 to {len(known) - 1}" if all(key == i for i, key in enumerate(known)) else ", ".join(class_names[:10])
        )
        raise UserError(
            f"data.label_column={column}: row {strange} of the {split} split of {source} has the label "
            f"{values[strange]}, which is out of range",
            f"the {len(known)} classes are {classes}",
        )
    return np.array([known[value] for value in values], dtype=np.int64)


def _form(table: datasets.Dataset, column: str, data: StoredImagesConfig, source: Source) -> ImageForm:
    """The form of the set from its first image that can be decoded."""
    encoded_rows = _encoded(table, column)
    reason = ""
    for row in range(len(encoded_rows)):
        try:
            return image_form(open_image(encoded_rows[row][column]), data.image_size, data.resize, data.channels)
        except Unusable as error:
            reason = str(error)
    raise UserError(f"{source}: none of {len(encoded_rows)} images can be decoded; the last: {reason}")


def _encoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
    import datasets

    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _decoded(table: datasets.Dataset, column: str, form: ImageForm, title: str) -> ImageCache:
    encoded_rows = _encoded(table, column)
    key = {"rows": split_fingerprint(table), "column": column, "form": form.key()}
    shape = (len(table), form.channels, form.height, form.width)
    return image_cache(key, shape, lambda pixels: decode_all(encoded_rows, column, form, pixels, title))


def _usable(cache: ImageCache, num_rows: int, on_corrupt: str, title: str, notes: list[str]) -> np.ndarray:
    """Positions of usable images. Raises: UserError: some are not, and that is not to be passed over."""
    if cache.unusable:
        count = f"{title}: {len(cache.unusable)} of {num_rows} images cannot be used"
        examples = "; ".join(list(cache.unusable.values())[:3])
        if on_corrupt == "refuse" or len(cache.unusable) == num_rows:
            raise UserError(count, examples, "data.on_corrupt=skip leaves them out")
        notes.append(f"{count} and are left out: {examples}")
    return np.setdiff1d(np.arange(num_rows), np.fromiter(cache.unusable, dtype=np.int64))
