"""Single images as people have them: files, folders, arrays, Pillow images; converted as in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.data.images.decode import ImageForm, OtherForm, Unusable, open_image, to_form, upright
from trainer.data.sources import IMAGE_SUFFIXES
from trainer.errors import UserError


@dataclass(frozen=True)
class ImageFiles:
    """Images of a file or folder. names: relative to the folder, sorted by code point. num_other: files in the folder
    that have no suffix of an image."""

    root: Path
    names: list[str]
    num_other: int

    def path(self, number: int) -> Path:
        """Where an image is."""
        return self.root / self.names[number]


def find_images(place: Path) -> ImageFiles:
    """The image at a path, or all images below a folder. Hidden files are no images.

    Raises: UserError: there is no such path, or no image in the folder.
    """
    if place.is_file():
        return ImageFiles(place.parent, [place.name], 0)
    if not place.is_dir():
        raise UserError(f"input={place}: no such file or directory")
    found = (path.relative_to(place) for path in place.rglob("*") if path.is_file())
    visible = [path for path in found if not any(part.startswith(".") for part in path.parts)]
    names = sorted(path.as_posix() for path in visible if path.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        raise UserError(
            f"input={place}: no image in this directory", f"images have the suffix {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return ImageFiles(place, names, len(visible) - len(names))


def read_image(value: Any, form: ImageForm) -> np.ndarray:
    """One raw image as (C, H, W) uint8, converted as the training images were.

    Args: value: path; the bytes of an encoded image; a Pillow image; or an array (H, W) or (H, W, C), uint8 or uint16.
    Raises: Unusable: it cannot be decoded, or the run's training would have refused it.
    """
    try:
        return to_form(_opened(value), form)
    except OtherForm as error:
        raise Unusable(f"has {error.own}, the training images have {error.expected}") from error


def _opened(value: Any) -> Image.Image:
    if isinstance(value, (str, Path)):
        return open_image({"path": str(value)})
    if isinstance(value, bytes):
        return open_image({"bytes": value})
    if isinstance(value, Image.Image):
        return upright(value.copy())
    if not isinstance(value, np.ndarray):
        raise Unusable(f"a value of type {type(value).__name__} is no image")
    try:
        return upright(Image.fromarray(value))
    except (TypeError, ValueError) as error:
        shape = "x".join(map(str, value.shape))
        needed = "(H, W) or (H, W, 3) uint8"
        raise Unusable(f"an array of {value.dtype} and shape {shape} is no image; needed: {needed}") from error
