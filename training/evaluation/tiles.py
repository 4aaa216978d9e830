"""Labelled tiles: a folder of images for each class, and which of them belong together.

`groups.csv` in the folder, with the columns `tile` (`class/file`) and `group`, says which tiles are
of one patient. Tiles of one group are never on both sides of a split.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage
from training.errors import InsufficientData

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
UNREADABLE: Final = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a file that is not an image, cut or absurdly large."""
GROUPS: Final = "groups.csv"

Tile = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Hdf5Tile:
    """A tile that is one of many in the array `x`, uint8 [N, h, w, 3], of an HDF5 file."""

    file: Path
    index: int


TileSource = Path | Hdf5Tile


@dataclass(frozen=True, kw_only=True)
class TileFolder:
    """Labelled tiles of a folder, in a fixed order.

    Attributes:
        folder: as it was given.
        paths: of the tiles.
        labels: index into `classes` of each tile.
        classes: their names.
        groups: of each tile, None where they are not known.
        ignored: hidden files with a tile's suffix.
        train: whether each tile is learnt from, and tested on else; None where nobody has divided
            them.
    """

    folder: str
    paths: list[TileSource]
    labels: list[int]
    classes: list[str]
    groups: list[str] | None
    ignored: list[str]
    train: list[bool] | None = None


def find_tiles(folder: str) -> TileFolder:
    """The tiles below a local folder.

    Raises:
        InsufficientData: it is not a local folder, or `groups.csv` does not list every tile.
    """
    root = storage.local_path(folder)
    if root is None or not root.is_dir():
        raise InsufficientData(
            f"{folder} is not a local folder; give one with a folder of tiles for each class"
        )
    paths: list[Path] = []
    labels: list[int] = []
    classes: list[str] = []
    ignored: list[str] = []
    for kind in sorted(path for path in root.iterdir() if path.is_dir()):
        files = sorted(path for path in kind.iterdir() if path.suffix.lower() in SUFFIXES)
        ignored += [tile_name(path) for path in files if path.name.startswith(".")]
        if found := [path for path in files if not path.name.startswith(".")]:
            labels += [len(classes)] * len(found)
            classes.append(kind.name)
            paths += found
    return TileFolder(
        folder=folder,
        paths=[*paths],
        labels=labels,
        classes=classes,
        groups=_read_groups(root, paths),
        ignored=ignored,
    )


def _read_groups(root: Path, paths: list[Path]) -> list[str] | None:
    table = root / GROUPS
    if not table.exists():
        return None
    with table.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if any(not row.get("tile") or not row.get("group") for row in rows):
        raise InsufficientData(
            f"{table} needs the columns tile (class/file) and group, both filled in every row"
        )
    groups = {row["tile"]: row["group"] for row in rows}
    if absent := [tile_name(path) for path in paths if tile_name(path) not in groups]:
        raise InsufficientData(
            f"{table} has no group for {len(absent)} of {len(paths)} tiles, the first is "
            f"{absent[0]}; add them, or remove the file to split at random"
        )
    return [groups[tile_name(path)] for path in paths]


def tile_name(tile: TileSource) -> str:
    """Class and file, or file and position."""
    if isinstance(tile, Hdf5Tile):
        return f"{tile.file.name}[{tile.index}]"
    return f"{tile.parent.name}/{tile.name}"


def read_tile(tile: TileSource) -> Tile:
    """The pixels of a tile, uint8 [h, w, 3]; raises UNREADABLE."""
    if isinstance(tile, Hdf5Tile):
        with h5py.File(tile.file) as file:
            return np.asarray(file["x"][tile.index])
    with Image.open(tile) as image:
        return np.asarray(image.convert("RGB"))


def resampled(tile: Tile, *, mpp: float, wanted: float) -> Tile:
    """The tile at the wanted resolution, uint8 [h, w, 3]; averaged where it shrinks."""
    height, width = (max(1, round(side * mpp / wanted)) for side in tile.shape[:2])
    if (height, width) == tile.shape[:2]:
        return tile
    method = Image.Resampling.BOX if mpp < wanted else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(tile).resize((width, height), method))


def cut(tile: Tile, *, size: int) -> Tile:
    """Patches [N, size, size, 3] that cover the tile evenly, overlapping where they must; smaller
    tiles are mirrored outwards.
    """
    short = [max(0, size - side) for side in tile.shape[:2]]
    if any(short):
        tile = np.pad(
            tile, [(lack // 2, lack - lack // 2) for lack in short] + [(0, 0)], mode="symmetric"
        )
    top, left = (
        np.rint(np.linspace(0, side - size, max(1, -(-side // size)) if side > size else 1)).astype(
            int
        )
        for side in tile.shape[:2]
    )
    return np.stack([tile[y : y + size, x : x + size] for y in top for x in left])
