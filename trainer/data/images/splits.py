"""A configured image set -> decoded pixels and labels of each split it brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trainer.data.confined import check_paths
from trainer.data.images.cache import ImageCache, image_cache, moments, pixel_hash
from trainer.data.images.config import ImageDataConfig, StoredImagesConfig
from trainer.data.images.decode import ImageForm, Unusable, decode_all, image_form, open_image, to_form
from trainer.data.sources import (
    Source,
    check_rows,
    file_roots,
    hub_commit,
    load_splits,
    pinning_note,
    split_fingerprint,
)
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
    """All splits of a set by name: train, and where the set has them val and test.

    form: of the images. class_names: empty without labels. notes: what the user should know about how the set was
    read, a line each. revision: commit of a set of the hub.
    """

    splits: Mapping[str, ImageSplit]
    form: ImageForm
    class_names: Sequence[str]
    source: str
    notes: Sequence[str]
    revision: str | None = None


def read_splits(
    data: ImageDataConfig, form: ImageForm | None = None, class_names: Sequence[str] | None = None
) -> ImageSplits:
    """Read and decode a set.

    Args: form: to convert images to; None derives it from the first one. class_names: the classes to number labels by;
        None takes those of the set, and an empty sequence reads no labels.
    Raises: UserError: the set is not there, or not as configured, or has a class that is not in class_names.
    """
    if isinstance(data, StoredImagesConfig):
        return _stored(data, form, class_names)
    return _digits(data, form, class_names)


def _digits(data: ImageDataConfig, form: ImageForm | None, class_names: Sequence[str] | None) -> ImageSplits:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 with 17 levels (Alpaydin and Kaynak, UCI 1998)."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(image) for image in levels]
    form = form or image_form(images[0], data.image_size, data.resize, data.channels)
    try:
        pixels = np.stack([to_form(image, form) for image in images])
    except Unusable as error:
        raise UserError(f"data=digits: {error}") from error
    sums, squares = moments(pixels)
    source, found = "scikit-learn's digits", {number: str(number) for number in digits.target_names.tolist()}
    names = list(found.values()) if class_names is None else list(class_names)
    labels = np.full(len(pixels), NO_LABEL, dtype=np.int64)
    if names:
        labels = _class_numbers("train", digits.target.tolist(), found, names, source)
    split = ImageSplit(pixels, labels, sums, squares, np.arange(len(pixels)), pixel_hash(pixels))
    return ImageSplits({"train": split}, form, names, source, [])


def _stored(data: StoredImagesConfig, form: ImageForm | None, class_names: Sequence[str] | None) -> ImageSplits:
    source = Source(data.hub_id, data.subset, data.path, revision=data.revision, sha256=data.sha256)
    tables = load_splits(source)
    image_column = _image_column(tables["train"], data.image_column, source)
    for name, table in tables.items():
        check_paths(_encoded(table, image_column), image_column, file_roots(source), f"{source}, {name} split")
    check_rows(tables, source)
    commit = hub_commit(tables, source)
    notes = [note for note in (pinning_note(source, commit),) if note]
    if class_names is not None and not class_names:
        labels, names = _without_labels(tables), []
    else:
        label_column = _label_column(tables["train"], data.label_column, source)
        labels, names = _labels(tables, label_column, source, class_names, notes)
    form = form or _form(tables["train"], image_column, data, source)
    splits = {}
    for name, split_labels in labels.items():
        cache = _decoded(tables[name], image_column, form, f"{source}, {name} split")
        rows = _usable(cache, len(split_labels), data.on_corrupt, f"{source}, {name} split", notes)
        splits[name] = ImageSplit(cache.pixels, split_labels, cache.sums, cache.squares, rows, cache.sha256)
    return ImageSplits(splits, form, names, str(source), notes, commit)


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


def _without_labels(tables: Mapping[str, datasets.Dataset]) -> dict[str, np.ndarray]:
    return {name: np.full(len(table), NO_LABEL, dtype=np.int64) for name, table in tables.items()}


def _labels(
    tables: Mapping[str, datasets.Dataset],
    column: str | None,
    source: Source,
    class_names: Sequence[str] | None,
    notes: list[str],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Class numbers of each split that has labels, and the classes' names.

    Classes are `class_names` where they are given, else those of the ClassLabel, else the sorted distinct values of the
    training split. Labels are matched by name, since another set of folders numbers the same classes differently.
    """
    import datasets

    if column is None:
        if class_names:
            raise UserError(
                f"{source}: the images have no labels, and the run was trained on {len(class_names)} classes"
            )
        return _without_labels(tables), []
    values = {name: table.with_format("arrow")[:][column].to_pylist() for name, table in tables.items()}
    for name in [name for name in values if name != "train" and set(values[name]) <= {NO_LABEL, None}]:
        notes.append(f"the {name} split has no labels and is left out")
        del values[name]
    feature = tables["train"].features[column]
    if isinstance(feature, datasets.ClassLabel):
        found: dict[Any, str] = dict(enumerate(feature.names))
    else:
        read = values["train"] if class_names is None else [value for split in values.values() for value in split]
        distinct = sorted(set(read) - {None}, key=lambda value: (str(type(value)), value))
        strange = next((value for value in distinct if not isinstance(value, (int, str))), None)
        if strange is not None:
            raise UserError(f"data.label_column={column}: classes are numbers or names, not {strange}")
        found = {value: str(value) for value in distinct}
    names = list(found.values()) if class_names is None else list(class_names)
    title = f"{source}, data.label_column={column}"
    return {name: _class_numbers(name, split, found, names, title) for name, split in values.items()}, names


def _class_numbers(
    split: str, values: Sequence[Any], found: Mapping[Any, str], names: Sequence[str], title: str
) -> np.ndarray:
    """Labels as positions in `names`. Args: found: the name of each value that the set declares or holds."""
    positions = {name: position for position, name in enumerate(names)}
    known = {value: positions[name] for value, name in found.items() if name in positions}
    unknown = next((row for row, value in enumerate(values) if value not in known), None)
    if unknown is not None:
        label = found.get(values[unknown], values[unknown])
        listing = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(
            f"{title}: row {unknown} of the {split} split has the label {label}, which is not one of the classes",
            f"the {len(names)} classes are {listing}",
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
    """Positions of usable images. Raises: UserError: some are not usable, and on_corrupt does not skip them."""
    if cache.unusable:
        count = f"{title}: {len(cache.unusable)} of {num_rows} images cannot be used"
        examples = "; ".join(list(cache.unusable.values())[:3])
        if on_corrupt == "refuse" or len(cache.unusable) == num_rows:
            raise UserError(count, examples, "data.on_corrupt=skip leaves them out")
        notes.append(f"{count} and are left out: {examples}")
    return np.setdiff1d(np.arange(num_rows), np.fromiter(cache.unusable, dtype=np.int64))
