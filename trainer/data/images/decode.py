"""Encoded images -> one uint8 array, in parallel threads.

Pillow releases the GIL while it decodes and resizes, so threads scale for photographs. For tiny images the Python code
around each one is the limit, and those take seconds anyway.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.errors import UserError

if TYPE_CHECKING:
    import datasets

CHUNK_ROWS = 256
FIRST_NOTE_S, NOTE_EVERY_S = 3.0, 10.0
# Pillow finds out the format from the content: a file called .png may be one that Ghostscript would have to run.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# 20 KB of PNG can hold a billion equal pixels. The largest cameras have 61 million; each takes up to 8 bytes.
MAX_PIXELS = 2**26
# A progressive JPEG of 20 KB can have a thousand scans of all its pixels. The largest photographs take two seconds.
DECODE_LIMIT_S = 30.0
GREY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa"})
GREY_16_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})


class Unusable(Exception):
    """One image cannot be used; the message is the reason."""


class OtherForm(Unusable):
    """One image differs in channels or size from what the configuration accepts without conversion.

    Args: own, expected: what it has and what it should have, as in "3 channels". advice: the option that converts it.
    """

    def __init__(self, own: str, expected: str, advice: str) -> None:
        super().__init__(f"has {own} instead of {expected}")
        self.own, self.expected, self.advice = own, expected, advice


@dataclass(frozen=True)
class ImageForm:
    """What every image of a set is converted to: (channels, height, width) uint8.

    source_size: (width, height) that an image must have when nothing is resized; None where any size is accepted.
    source_channels: channels that an image must have before conversion; None where any number is accepted.
    """

    channels: int
    height: int
    width: int
    resize: str
    source_size: tuple[int, int] | None
    source_channels: int | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a converted image."""
        return (self.channels, self.height, self.width)

    def key(self) -> dict[str, Any]:
        """Everything that the pixels depend on, in plain containers."""
        return asdict(self)


def image_form(first: Image.Image, image_size: int | None, resize: str, channels: int | None) -> ImageForm:
    """The form of a set: as configured, and where a value is None, as the first image has it."""
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
    """1 for grey, 3 for colour, whatever the palette or transparency. Raises: Unusable: not 8 bits a channel."""
    if image.mode in GREY_MODES:
        return 1
    if image.mode in COLOUR_MODES:
        return 3
    raise Unusable(f"mode {image.mode} has neither 8 nor 16 bits a channel")


def open_image(encoded: Mapping[str, Any]) -> Image.Image:
    """A decoded image from a row's {bytes, path}, see `upright`.

    Raises: Unusable: it cannot be decoded, or not within DECODE_LIMIT_S.
    """
    found: Future[Image.Image] = Future()

    def decode() -> None:
        try:
            found.set_result(_open_image(encoded))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            found.set_exception(error)

    # Nothing stops a decoder. The process can end without a thread that is a daemon.
    threading.Thread(target=decode, daemon=True).start()
    try:
        return found.result(DECODE_LIMIT_S)
    except TimeoutError:
        raise Unusable(TOO_SLOW.format(DECODE_LIMIT_S)) from None


TOO_SLOW = "takes longer than {:g} s to decode; leave it out, or convert it"


def _open_image(encoded: Mapping[str, Any]) -> Image.Image:
    """`open_image` without its limit of time."""
    source = io.BytesIO(encoded["bytes"]) if encoded.get("bytes") is not None else encoded["path"]
    if source is None:
        raise Unusable("the row holds no image")
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height} pixels"
                raise Unusable(f"has {size}, more than {MAX_PIXELS:,}; make it smaller, or cut it")
            return upright(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise Unusable(reason) from error


def upright(image: Image.Image) -> Image.Image:
    """The first frame, turned as its EXIF orientation says, 16-bit grey scaled to 8 bits."""
    image.load()
    orientation = image.getexif()
    if image.mode in GREY_16_BIT_MODES:
        # Pillow's own conversion to 8 bits clips at 255. 16-bit colour has been reduced by its decoder already.
        levels = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        image = Image.fromarray(levels.astype(np.uint8))
        image.getexif().update(orientation)
    return ImageOps.exif_transpose(image)


def to_form(image: Image.Image, form: ImageForm) -> np.ndarray:
    """One image as (C, H, W) uint8.

    Raises: Unusable: it is too small. OtherForm: its channels or size are not accepted.
    """
    own, expected = channels_of(image), form.source_channels
    if expected is not None and expected != own:
        advice = "data.channels=1 or data.channels=3 converts all images"
        raise OtherForm(_channels(own), _channels(expected), advice)
    if form.source_size is not None and form.source_size != image.size:
        raise OtherForm(_size(image.size), _size(form.source_size), "data.image_size=PIXELS resizes all images")
    converted = image.convert("L" if form.channels == 1 else "RGB")
    pixels = np.asarray(_resized(converted, form))
    return pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _size(size: tuple[int, int]) -> str:
    return "{}x{} pixels".format(*size)


def _resized(image: Image.Image, form: ImageForm) -> Image.Image:
    target = (form.width, form.height)
    if form.resize == "crop":
        if image.width < form.width or image.height < form.height:
            size = f"{image.width}x{image.height}"
            raise Unusable(f"{size} is smaller than data.image_size={form.width}; data.resize=stretch enlarges")
        return ImageOps.fit(image, target, method=Image.Resampling.BILINEAR)
    return image if image.size == target else image.resize(target, Image.Resampling.BILINEAR)


def row_name(row: int, encoded: Mapping[str, Any]) -> str:
    """The name of an image in messages: its file, or its row."""
    return str(encoded.get("path") or f"row {row}")


def decode_all(rows: datasets.Dataset, column: str, form: ImageForm, pixels: np.ndarray, title: str) -> dict[int, str]:
    """Decode every row into `pixels`; rows that cannot be used stay black.

    Args: rows: whose `column` yields {bytes, path}. pixels (N, C, H, W) uint8, filled in place. title: for progress.
    Returns: reason by row, for the rows that cannot be used.
    Raises: UserError: an image differs from the first in channels or size, and the configuration does not convert; or
        its decoding takes longer than DECODE_LIMIT_S.
    """
    unusable: dict[int, str] = {}
    running: dict[int, tuple[str, float]] = {}  # by thread: the image that it decodes, and since when

    def decode_chunk(start: int) -> int:
        """Decode rows from `start` on. Returns: how many."""
        encoded_rows = rows[start : start + CHUNK_ROWS][column]
        for row, encoded in enumerate(encoded_rows, start):
            running[threading.get_ident()] = row_name(row, encoded), time.monotonic()
            try:
                pixels[row] = to_form(_open_image(encoded), form)
            except OtherForm as error:
                reason = f"{row_name(row, encoded)} has {error.own}, the first image has {error.expected}"
                raise UserError(f"{title}: {reason}", error.advice) from error
            except Unusable as error:
                unusable[row] = f"{row_name(row, encoded)}: {error}"
        running.pop(threading.get_ident(), None)
        return len(encoded_rows)

    note = _progress(title, len(rows))
    # Its threads are daemons, as in open_image; those of concurrent.futures are waited for when the process ends.
    with ThreadPool(min(os.cpu_count() or 1, 32)) as pool:
        counts = pool.imap_unordered(decode_chunk, range(0, len(rows), CHUNK_ROWS))
        while True:
            try:
                note(counts.next(timeout=DECODE_LIMIT_S / 10))
            except StopIteration:
                return dict(sorted(unusable.items()))
            except multiprocessing.TimeoutError:
                _refuse_slow(running, title)


def _refuse_slow(running: Mapping[int, tuple[str, float]], title: str) -> None:
    """Raises: UserError: an image is being decoded for longer than DECODE_LIMIT_S."""
    for name, since in list(running.values()):
        if time.monotonic() - since > DECODE_LIMIT_S:
            raise UserError(f"{title}: {name} {TOO_SLOW.format(DECODE_LIMIT_S)}")


def _progress(title: str, total: int) -> Callable[[int], None]:
    """A function that counts images and prints a line to stderr at intervals; short jobs print none."""
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
