"""Where a slide was not scanned: what a scanner or converter filled with one colour instead.

    black_areas      on the thumbnail: no tissue, fold or ink averages to black
    filled_tiles     tiles within tissue that are of exactly one colour, and not the colour of glass

White and grey can't be recognised on a thumbnail: averaging and JPEG take the noise from glass and
ink as well. Whole tiles can: one colour compresses to next to nothing, so few of them need to be
decoded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.glass import extremes
from pipelines.slides.geometry import Point, Size
from pipelines.slides.slide import Slide
from pipelines.slides.tiled import TiledSlide

Mask = NDArray[np.bool_]
Colour = tuple[float, float, float]

BLACK = 10
"""Brightest channel (0-255) of black: JPEG leaves noise in it; ink and folds are brighter."""
MIN_BLACK_UM = 25.0
"""Black areas smaller than a square of this side may be pigment or dirt."""
MAX_INK_UM, DARK = 2000.0, 60
"""Black areas larger than a square of this side are not ink. Smaller ones are ink or a fold if most
of what is around them is darker than this (0-255): a stroke gets black gradually."""
MAX_BYTES_PER_PIXEL, MAX_HEADER = 0.04, 800
"""Of a compressed tile of one colour: JPEG needs 0.016 (4:2:0) to 0.027 (4:4:4) bytes a pixel and
at most 620 bytes of tables; tissue needs 0.1 and more."""
GLASS_TOLERANCE = 2.0
"""Grey levels by which a fill differs from the slide's glass; else the tile is glass."""
APART = 0.7
"""Share of a filled block's outline beyond which another colour begins."""
COVERED = 0.5
"""Share of a tile that tissue covers or encloses for it to be within tissue."""
BATCH_PIXELS = 64 * 256 * 256
"""Pixels of the tiles that are decoded at a time: 13 MB. At least one tile is."""


def black_areas(thumbnail: NDArray[np.uint8], *, mpp: float) -> Mask:
    """Areas filled with black, bool [h, w]; narrower than two pixels they can be missed.

    Args:
        thumbnail: uint8 [h, w, 3].
        mpp: micrometres per pixel of the thumbnail.
    """
    brightest = extremes(thumbnail)[1]
    black = brightest <= BLACK
    if not black.any():
        return black
    pieces, _ = ndimage.label(black, np.ones((3, 3)))
    areas = np.bincount(pieces.ravel())
    # One pixel round a block is a mixture; what is beyond tells ink from a fill.
    ring = np.where(ndimage.maximum_filter(black, 3), 0, ndimage.maximum_filter(pieces, 7))
    beyond = np.bincount(ring.ravel(), minlength=len(areas))
    dark = np.bincount(ring[brightest < DARK], minlength=len(areas))
    block = (areas > (MIN_BLACK_UM / mpp) ** 2) & (dark <= 0.5 * beyond)
    block |= areas > (MAX_INK_UM / mpp) ** 2
    block[0] = False
    return np.asarray(block[pieces])


def larger_pieces(mask: Mask, min_area: float) -> Mask:
    """Connected pieces of more than `min_area` pixels."""
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    large = np.bincount(pieces.ravel()) > min_area
    large[0] = False
    return large[pieces]


def filled_tiles(slide: Slide, tissue: Mask, glass: Colour | None) -> Mask:
    """Tiles of level 0 within tissue that are of one colour, over the mask's pixels, bool [h, w].

    Only for slides read by their own tile index, and only if the glass's colour is known. What is
    around the tiles must be of another colour: a lumen that is burnt out does not end where a tile
    does. Fills in uncompressed tiles are not found, except black ones on the thumbnail: such tiles
    are all of one length, so every one of them would have to be read.

    Args:
        slide: open slide.
        tissue: mask over the whole slide at any scale, bool [h, w].
        glass: colour of the glass, 0-255.

    Raises:
        BrokenSlide: a tile does not decode.
    """
    found = np.zeros_like(tissue)
    if glass is None or not isinstance(slide, TiledSlide):
        return found
    grid, windows = slide.indexes[0].grid, _windows(slide, tissue)
    filled = np.zeros((grid.rows, grid.columns), bool)
    rings: dict[tuple[int, int], Sides] = {}
    tiles = list(windows)
    count = max(1, BATCH_PIXELS // (grid.tile.width * grid.tile.height))
    for start in range(0, len(tiles), count):
        batch = tiles[start : start + count]
        corners = [Point(x * grid.tile.width - 1, y * grid.tile.height - 1) for y, x in batch]
        size = Size(grid.tile.width + 2, grid.tile.height + 2)
        for tile, pixels in zip(batch, slide.read_regions(corners, 0, size), strict=True):
            filled[tile], rings[tile] = _is_filled(pixels, glass)
    for tile in _enclosed(filled, rings):
        found[windows[tile]] = True
    return found


Sides = tuple[float, float, float, float]
"""Of what is just beyond a tile's top, bottom, left and right: the share of another colour."""


def _windows(slide: TiledSlide, tissue: Mask) -> dict[tuple[int, int], tuple[slice, slice]]:
    """Short tiles within tissue, (row, column): the pixels of the mask that each covers."""
    index = slide.indexes[0]
    tile = index.grid.tile
    limit = MAX_BYTES_PER_PIXEL * tile.width * tile.height + MAX_HEADER
    # A tile without data is glass in the formats that leave tiles out on purpose.
    short = (index.lengths > 0) & (index.lengths < limit)
    down, across = tissue.shape[0] / slide.size.height, tissue.shape[1] / slide.size.width
    enclosed = ndimage.binary_fill_holes(tissue)
    windows = {}
    for number in np.flatnonzero(short).tolist():
        row, column = divmod(number, index.grid.columns)
        window = (_span(row, tile.height * down), _span(column, tile.width * across))
        if enclosed[window].size and enclosed[window].mean() >= COVERED:
            windows[row, column] = window
    return windows


def _is_filled(pixels: NDArray[np.uint8], glass: Colour) -> tuple[bool, Sides]:
    """Whether a tile is of one colour that is not the glass's; given with a rim of one pixel."""
    colour = pixels[1, 1].astype(float)
    apart = np.abs(colour - np.array(glass)).max() > GLASS_TOLERANCE
    other = np.abs(pixels - colour).max(axis=2) > GLASS_TOLERANCE
    sides = (other[0, 1:-1], other[-1, 1:-1], other[1:-1, 0], other[1:-1, -1])
    top, bottom, left, right = (float(side.mean()) for side in sides)
    is_constant = bool((pixels[1:-1, 1:-1] == pixels[1, 1]).all())
    return is_constant and bool(apart), (top, bottom, left, right)


def _enclosed(filled: Mask, rings: dict[tuple[int, int], Sides]) -> list[tuple[int, int]]:
    """Filled tiles, alone or with neighbours, whose outline is mostly of another colour."""
    pieces, count = ndimage.label(np.pad(filled, 1))
    shares: list[list[float]] = [[] for _ in range(count + 1)]
    for (row, column), sides in rings.items():
        y, x = row + 1, column + 1
        beyond = (pieces[y - 1, x], pieces[y + 1, x], pieces[y, x - 1], pieces[y, x + 1])
        shares[pieces[y, x]] += [
            share for share, other in zip(sides, beyond, strict=True) if not other
        ]
    apart = [bool(one) and float(np.mean(one)) >= APART for one in shares]
    tiles = ((row, column) for row, column in rings if filled[row, column])
    return [(row, column) for row, column in tiles if apart[pieces[row + 1, column + 1]]]


def _span(number: int, length: float) -> slice:
    """Mask pixels that are at least half within tile `number` of this length."""
    start = round(number * length)
    return slice(start, max(start + 1, round((number + 1) * length)))
