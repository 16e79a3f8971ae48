"""Decoded images on disk: one memory-mapped uint8 array per split, built once and shared by all processes and runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.cache import build_once, cache_key

VERSION = 2  # of the layout below and of the decoding; another version is stored in another folder


@dataclass(frozen=True)
class ImageCache:
    """pixels (N, C, H, W) uint8, memory-mapped. sums, squares (N, C) int64: of each image's pixels and their squares,
    from which the mean and variance of any subset follow without reading it. unusable: reason by row; such a row is
    black. sha256: of all pixels, which identifies the data wherever it came from.
    """

    folder: Path
    pixels: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    unusable: Mapping[int, str]
    sha256: str


def image_cache(
    key: Mapping[str, Any], shape: tuple[int, int, int, int], decode: Callable[[np.ndarray], Mapping[int, str]]
) -> ImageCache:
    """Open a cache, or build it.

    Args: key: everything that the pixels depend on. shape: (N, C, H, W). decode: fills an array of that shape, returns
        the reason by row for rows it could not fill.
    Raises: UserError: the cache directory cannot be written or is too small.
    """
    name = cache_key(json.dumps(key, sort_keys=True), shape, VERSION)
    folder = build_once(
        "images", name, lambda staging: _build(staging, shape, decode), lambda found: _open(found, shape) is not None
    )
    cache = _open(folder, shape)
    if cache is None:
        raise RuntimeError(f"{folder} was built and cannot be opened")
    return cache


def _open(folder: Path, shape: tuple[int, ...]) -> ImageCache | None:
    """A valid cache; None where there is none or it is damaged."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        # Copy-on-write, since torch warns about read-only arrays; nothing ever writes.
        pixels = np.load(folder / "pixels.npy", mmap_mode="c")
        sums, squares = np.load(folder / "sums.npy")
    except (OSError, ValueError):
        return None
    if pixels.shape != tuple(shape):
        return None
    unusable = {int(row): reason for row, reason in facts["unusable"].items()}
    return ImageCache(folder, pixels, sums, squares, unusable, facts["sha256"])


def _build(staging: Path, shape: tuple[int, ...], decode: Callable[[np.ndarray], Mapping[int, str]]) -> None:
    needed, free = int(np.prod(shape)), shutil.disk_usage(staging).free
    if needed > free:
        raise OSError(f"it needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free")
    pixels = np.lib.format.open_memmap(staging / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
    unusable = decode(pixels)
    pixels.flush()
    np.save(staging / "sums.npy", moments(pixels))
    facts = {"unusable": unusable, "sha256": pixel_hash(pixels)}
    (staging / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of pixels (N, C, H, W) uint8."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def moments(pixels: np.ndarray) -> np.ndarray:
    """Per image and channel the sum of values and of squares, exact. Args: (N, C, H, W) uint8. Returns: (2, N, C)."""
    result = np.empty((2, *pixels.shape[:2]), dtype=np.int64)
    squares = np.arange(256, dtype=np.uint32) ** 2
    for start in range(0, len(pixels), 1024):
        chunk = pixels[start : start + 1024]
        result[0, start : start + 1024] = chunk.sum(axis=(2, 3), dtype=np.int64)
        result[1, start : start + 1024] = squares[chunk].sum(axis=(2, 3), dtype=np.int64)
    return result
