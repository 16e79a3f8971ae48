"""Encoded images -> one uint8 array, in parallel threads.

Pillow releases the GIL while it decodes and resizes, so threads scale for photographs; for tiny images the Python
around each one bounds it, and those take seconds anyway.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.errors import UserError

if TYPE_CHECKING:
    import datasets

CHUNK_ROWS = 256
FIRST_NOTE_S, NOTE_EVERY_S = 3.0, 10.0
GREY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa"})


class Unusable(Exception):
    """One image that cannot be used, and why; what becomes of it is the user's choice."""


@dataclass(frozen=True)
class ImageForm:
    """What every image of a set is made into: (channels, height, width) uint8.

    source_size: (width, height) that an image must have when nothing resizes; None where it may have any.
    source_channels: channels that an image must have before conversion; None where it may have any.
    """

    channels: int
    height: int
    width: int
    resize: str
    source_size: tuple[int, int] | None
    source_channels: int | None

    def key(self) -> dict[str, Any]:
        """Everything that decides about the pixels, in plain containers."""
        return asdict(self)


def image_form(first: Image.Image, image_size: int | None, resize: str, channels: int | None) -> ImageForm:
    """The form of a set, as configured and where that says nothing as the first image has it."""
    own = channels_of(first)
    width, height = (image_size, image_size) if image_size else first.size
    return ImageForm(
        channels=channels or own,
        height=height,
        width=width,
        resize=resize,
        source_size=None if image_size else first.size,
        source_channels=None if channels else own,
    )


def channels_of(image: Image.Image) -> int:
    """1 for grey, 3 for colour, whatever its palette or transparency. Raises: Unusable: more than 8 bits a channel."""
    if image.mode in GREY_MODES:
        return 1
    if image.mode in COLOUR_MODES:
        return 3
    raise Unusable(f"mode {image.mode} is not 8 bits a channel")


def open_image(encoded: Mapping[str, Any]) -> Image.Image:
    """A decoded image, upright, from a row's {bytes, path}. Raises: Unusable: it cannot be decoded."""
    source = io.BytesIO(encoded["bytes"]) if encoded.get("bytes") is not None else encoded["path"]
    if source is None:
        raise Unusable("the row holds no image")
    try:
        image = Image.open(source)
        image.load()
        return ImageOps.exif_transpose(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise Unusable(reason) from error


def to_form(image: Image.Image, form: ImageForm) -> np.ndarray:
    """One image as (C, H, W) uint8.

    Raises: Unusable: it is too small. UserError: it differs from the first image in a way that needs a decision.
    """
    own = channels_of(image)
    if form.source_channels not in (None, own):
        raise UserError(
            f"has {own} channel(s), the first image {form.source_channels}",
            "data.channels=1 or data.channels=3 converts all",
        )
    if form.source_size not in (None, image.size):
        raise UserError(
            "is {}x{}, the first image {}x{}".format(*image.size, *(form.source_size or ())),
            "data.image_size=PIXELS resizes all",
        )
    converted = image.convert("L" if form.channels == 1 else "RGB")
    pixels = np.asarray(_resized(converted, form))
    return pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)


def _resized(image: Image.Image, form: ImageForm) -> Image.Image:
    target = (form.width, form.height)
    if form.resize == "crop":
        if image.width < form.width or image.height < form.height:
            size = f"{image.width}x{image.height}"
            raise Unusable(f"{size} is smaller than data.image_size={form.width}; data.resize=stretch enlarges")
        return ImageOps.fit(image, target, method=Image.Resampling.BILINEAR)
    return image if image.size == target else image.resize(target, Image.Resampling.BILINEAR)


def row_name(row: int, encoded: Mapping[str, Any]) -> str:
    """How an image is named to the user: its file, or its row."""
    return str(encoded.get("path") or f"row {row}")


def decode_all(rows: datasets.Dataset, column: str, form: ImageForm, pixels: np.ndarray, title: str) -> dict[int, str]:
    """Decode every row into `pixels`; rows that cannot be used stay black.

    Args: rows: whose `column` yields {bytes, path}. pixels (N, C, H, W) uint8, filled in place. title: for progress.
    Returns: reason by row, for the rows that cannot be used.
    Raises: UserError: an image differs from the first in channels or size, and the configuration does not convert.
    """
    unusable: dict[int, str] = {}

    def decode_chunk(start: int) -> int:
        """Rows from `start` on. Returns: how many."""
        encoded_rows = rows[start : start + CHUNK_ROWS][column]
        for row, encoded in enumerate(encoded_rows, start):
            try:
                pixels[row] = to_form(open_image(encoded), form)
            except Unusable as error:
                unusable[row] = f"{row_name(row, encoded)}: {error}"
            except UserError as error:
                first, *rest = error.lines
                raise UserError(f"{title}: {row_name(row, encoded)} {first}", *rest) from error
        return len(encoded_rows)

    note = _progress(title, len(rows))
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 32)) as pool:
        try:
            for count in pool.map(decode_chunk, range(0, len(rows), CHUNK_ROWS)):
                note(count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return dict(sorted(unusable.items()))


def _progress(title: str, total: int) -> Callable[[int], None]:
    """Count images; a line on stderr now and then, none when it is over soon."""
    start = time.monotonic()
    done, due = 0, start + FIRST_NOTE_S

    def note(count: int) -> None:
        nonlocal done, due
        done += count
        now = time.monotonic()
        if now >= due and done < total:
            due = now + NOTE_EVERY_S
            left_s = (now - start) / done * (total - done)
            print(f"decoding {title}: {done:,} of {total:,} images, {left_s:.0f} s left", file=sys.stderr, flush=True)

    return note
