"""Stored tiles of one level and how they become pixels: each tile is decoded once.

The same code serves `Slide.read_region` and the patch stream, so that training, inference and
viewing see the same pixels. Knows no file and no format: tiles come in as complete streams with
the name of their codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.slides import codecs
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

    def touched(
        self, x: NDArray[np.int64], y: NDArray[np.int64], size: Size
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which windows touch which tiles. Parts of windows outside the level need no tile.

        Args:
            x: left edges of the windows in level pixels, int64 [N].
            y: top edges, likewise.
            size: of every window.

        Returns:
            Pairs as two arrays: window numbers and tile numbers, int64 [P] each.
        """
        left, right = (
            np.maximum(x, 0) // self.tile.width,
            np.minimum(x + size.width - 1, self.level.width - 1) // self.tile.width,
        )
        top, bottom = (
            np.maximum(y, 0) // self.tile.height,
            np.minimum(y + size.height - 1, self.level.height - 1) // self.tile.height,
        )
        windows, tiles = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for across in range(-(-size.width // self.tile.width) + 1):
            for down in range(-(-size.height // self.tile.height) + 1):
                window = np.flatnonzero((left + across <= right) & (top + down <= bottom))
                windows.append(window)
                tiles.append((top[window] + down) * self.columns + left[window] + across)
        return np.concatenate(windows), np.concatenate(tiles)

    def covering(self, x: NDArray[np.int64], y: NDArray[np.int64], size: Size) -> NDArray[np.int64]:
        """Sorted numbers of all tiles that the windows of `touched` need, int64 [T]."""
        return np.unique(self.touched(x, y, size)[1])

    def pieces(self, x: NDArray[np.int64], y: NDArray[np.int64], size: Size) -> Pieces:
        """What each window needs from each tile, sorted by tile and then by window."""
        columns = _cuts(x, size.width, self.tile.width, self.level.width)
        rows = _cuts(y, size.height, self.tile.height, self.level.height)
        # Every row of tiles that a window touches meets every column that it touches.
        left, right = np.meshgrid(np.arange(columns.shape[1]), np.arange(rows.shape[1]))
        across = columns[:, left.ravel()].reshape(-1, 4)
        down = rows[:, right.ravel()].reshape(-1, 4)
        window = np.repeat(np.arange(len(x)), left.size)
        real = (across[:, 1] > 0) & (down[:, 1] > 0)
        across, down, window = across[real], down[real], window[real]
        number = down[:, 0] * self.columns + across[:, 0]
        order = np.argsort(number, kind="stable")
        return Pieces(
            tile=number[order], window=window[order], across=across[order], down=down[order]
        )


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The parts of tiles that windows are assembled from.

    Attributes:
        tile, window: numbers, int64 [P].
        across, down: along x and along y, int64 [P, 4]: number of the tile's column (row), length
            in pixels, start in the tile, start in the window.
    """

    tile: NDArray[np.int64]
    window: NDArray[np.int64]
    across: NDArray[np.int64]
    down: NDArray[np.int64]


def _cuts(start: NDArray[np.int64], length: int, tile: int, level: int) -> NDArray[np.int64]:
    """Overlaps of windows [start, start + length) with the tiles of an axis.

    Returns:
        int64 [N, K, 4] as in `Pieces`; unused entries have length 0.
    """
    low, high = np.clip(start, 0, level), np.clip(start + length, 0, level)
    first = low // tile
    number = first[:, None] + np.arange(-(-length // tile) + 1)
    begin = np.maximum(low[:, None], number * tile)
    end = np.minimum(high[:, None], (number + 1) * tile)
    return np.stack(
        [number, np.maximum(end - begin, 0), begin - number * tile, begin - start[:, None]], axis=2
    )


def tile_buffer(tile: Size) -> NDArray[np.uint8]:
    """A buffer for a tile's pixels, uint8 [H, W, 3], aligned to an odd multiple of 16 bytes.

    At multiples of 32 bytes libjpeg-turbo writes with non-temporal stores, past the cache that the
    next copy reads from: 5 % (4:2:0) to 7 % (4:4:4) of the decoding.
    """
    count = tile.width * tile.height * 3
    room = np.empty(count + 32, np.uint8)
    start = (16 - room.ctypes.data) % 32
    return room[start : start + count].reshape(*tile.shape, 3)


def decode_windows(
    slide: str,
    grid: TileGrid,
    codec: str,
    streams: Mapping[int, codecs.Buffer],
    *,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Fill `out` with windows of one level.

    Args:
        slide: name or identity for errors.
        grid: the level's tiling.
        codec: how the tiles are encoded (`codecs`).
        streams: by tile number, the stream of every tile that the windows touch.
        x: left edges in level pixels, int64 [N]; may be outside the level.
        y: top edges, likewise.
        out: uint8 [N, H, W, 3]; pixels outside the level are left as they are.

    Raises:
        BrokenSlide: a tile is missing or does not decode; `out` must not be used then.
    """
    pieces = grid.pieces(x, y, Size(out.shape[2], out.shape[1]))
    whole = (pieces.across[:, 1] == grid.tile.width) & (pieces.down[:, 1] == grid.tile.height)
    alone = whole & (out.shape[1:3] == grid.tile.shape)
    scratch = tile_buffer(grid.tile)
    decoded = -1
    # Flat lists: a small list per piece would trigger Python's full garbage collection every few
    # shards, 3 % of the time.
    columns = (pieces.tile, pieces.window, alone, *pieces.across.T[1:], *pieces.down.T[1:])
    for number, window, direct, width, left, to_left, height, top, to_top in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        if number != decoded or direct:
            try:
                codecs.decode(codec, streams[number], out=out[window] if direct else scratch)
            except (ValueError, KeyError) as error:
                cause = f"has a tile that can't be decoded (number {number}: {error})"
                raise BrokenSlide(slide, cause, "scan or export the slide again") from error
            decoded = -1 if direct else number
        if not direct:
            out[window, to_top : to_top + height, to_left : to_left + width] = scratch[
                top : top + height, left : left + width
            ]
