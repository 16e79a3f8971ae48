"""Many images as one picture: a grid, a strip over time, an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

GAP = 2  # pixels between tiles
STRIP_ROWS, STRIP_COLUMNS = 8, 10
MAX_FRAMES, FRAME_MS = 60, 200
# In a run of somebody else the files may be of a format that Pillow passes to other programs.
FORMATS = ("PNG",)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write images (N, C, H, W) uint8 as one picture, row by row; almost square unless columns are given."""
    columns = columns or grid_columns(len(images))
    path.parent.mkdir(parents=True, exist_ok=True)
    _canvas(list(images.permute(0, 2, 3, 1).numpy()), columns).save(path)


def grid_columns(num_images: int) -> int:
    """Columns of an almost square grid."""
    return int(np.ceil(num_images**0.5))


def over_time(folder: Path, size: int) -> None:
    """Write strip.png (one sample per row, time from left to right) and animation.gif from the grids in a folder.

    They are made from the files, so those of a resumed run are complete. Args: size: side of a tile, pixels.
    """
    grids = sorted(folder.glob("step-*.png"))
    chosen = _evenly([np.asarray(Image.open(path, formats=FORMATS)) for path in grids], STRIP_COLUMNS)
    tiles = [_tiles(grid, size)[:STRIP_ROWS] for grid in chosen]
    rows = min(len(column) for column in tiles)
    _canvas([column[row] for row in range(rows) for column in tiles], len(tiles)).save(folder / "strip.png")
    frames = [Image.open(path, formats=FORMATS) for path in _evenly(grids, MAX_FRAMES)]
    frames[0].save(folder / "animation.gif", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)


def _canvas(tiles: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Tiles (H, W) or (H, W, C) uint8 side by side on black."""
    tiles = [tile.reshape(*tile.shape[:2], -1) for tile in tiles]
    height, width, channels = tiles[0].shape
    rows = -(-len(tiles) // columns)
    canvas = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + GAP), (number % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)


def _tiles(grid: np.ndarray, size: int) -> list[np.ndarray]:
    starts = [range(0, length, size + GAP) for length in grid.shape[:2]]
    return [grid[top : top + size, left : left + size] for top in starts[0] for left in starts[1]]


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spaced, the first and the last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(position)] for position in np.linspace(0, len(items) - 1, count)]
