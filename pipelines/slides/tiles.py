"""Stored tiles of one level and how they become pixels: each tile is decoded once, straight to where it belongs.

The same code serves `Slide.read_region` and the patch stream, so training, inference and viewing see the same pixels.
Knows no file and no format: tiles come in as JPEG streams that stand on their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.slides import jpeg
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Size


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """How a level is cut into stored tiles.

    Attributes:
        level: the level's size in pixels.
        tile: a tile's size; tiles at the right and lower edge are stored whole and padded.
    """

    level: Size
    tile: Size

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.level.width // self.tile.width)

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.level.height // self.tile.height)

    def touched(self, left: int, top: int, size: Size) -> list[int]:
        """Numbers of the tiles that one window of `size` at level pixel (`left`, `top`) touches; outside parts need none."""
        columns = range(max(left, 0) // self.tile.width, min((left + size.width - 1) // self.tile.width, self.columns - 1) + 1)
        rows = range(max(top, 0) // self.tile.height, min((top + size.height - 1) // self.tile.height, self.rows - 1) + 1)
        return [row * self.columns + column for row in rows for column in columns]

    def covering(self, x: NDArray[np.int64], y: NDArray[np.int64], size: Size) -> list[int]:
        """Sorted numbers of all tiles that windows of `size` at level pixels (`x`, `y`) touch."""
        windows = zip(x.tolist(), y.tolist(), strict=True)
        return sorted({number for left, top in windows for number in self.touched(left, top, size)})

    def windows_by_tile(self, x: NDArray[np.int64], y: NDArray[np.int64], size: Size) -> dict[int, list[int]]:
        """For each tile number the positions of the windows that need it."""
        found: dict[int, list[int]] = {}
        for k, (left, top) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
            for number in self.touched(left, top, size):
                found.setdefault(number, []).append(k)
        return found


def decode_windows(
    slide: str,
    grid: TileGrid,
    streams: Mapping[int, bytes | memoryview],
    *,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Fill `out` with windows of one level.

    Args:
        slide: name or identity for errors.
        grid: the level's tiling.
        streams: JPEG stream of every tile number that the windows touch.
        x: left edges in level pixels, int64 [N]; may lie outside the level.
        y: top edges, likewise.
        out: uint8 [N, H, W, 3]; what lies outside the level is left as it is.

    Raises:
        BrokenSlide: a tile is missing or does not decode; nothing of `out` may then be used.
    """
    size = Size(out.shape[2], out.shape[1])
    scratch = np.empty((*grid.tile.shape, 3), np.uint8)
    for number, windows in sorted(grid.windows_by_tile(x, y, size).items()):
        left, top = (number % grid.columns) * grid.tile.width, (number // grid.columns) * grid.tile.height
        inside = left + grid.tile.width <= grid.level.width and top + grid.tile.height <= grid.level.height
        alone = len(windows) == 1 and size == grid.tile and inside and (x[windows[0]], y[windows[0]]) == (left, top)
        target = out[windows[0]] if alone else scratch
        try:
            jpeg.decode(streams[number], out=target)
        except (ValueError, KeyError) as error:
            raise BrokenSlide(
                slide, f"has a tile that can't be decoded (number {number}: {error})", "scan or export the slide again"
            ) from error
        if not alone:
            valid = scratch[: grid.level.height - top, : grid.level.width - left]
            for k in windows:
                _paste(valid, (left, top), out[k], (int(x[k]), int(y[k])))


def _paste(tile: NDArray[np.uint8], tile_at: tuple[int, int], window: NDArray[np.uint8], window_at: tuple[int, int]) -> None:
    """Copy the part of the window that the tile covers; both positions are (x, y) in level pixels."""
    x0, x1 = max(tile_at[0], window_at[0]), min(tile_at[0] + tile.shape[1], window_at[0] + window.shape[1])
    y0, y1 = max(tile_at[1], window_at[1]), min(tile_at[1] + tile.shape[0], window_at[1] + window.shape[0])
    if x0 < x1 and y0 < y1:
        window[y0 - window_at[1] : y1 - window_at[1], x0 - window_at[0] : x1 - window_at[0]] = tile[
            y0 - tile_at[1] : y1 - tile_at[1], x0 - tile_at[0] : x1 - tile_at[0]
        ]
