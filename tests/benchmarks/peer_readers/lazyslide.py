"""LazySlide: its tiles' dataset, `wsidata.dataset.TileImagesDataset`, over a tile table with our
corners.

Option: wsidata's reader. `openslide` is its default; `fastslide` was the fastest of those it can
use. The dataset itself, item by item, was faster than `wsi.iter.tile_images` and than a DataLoader
without workers.
"""

from __future__ import annotations

from pathlib import Path

import lazyslide  # noqa: F401 - what its users import; registers its accessors
import numpy as np
from numpy.typing import NDArray
from wsidata import TileSpec, open_wsi
from wsidata.dataset import TileImagesDataset
from wsidata.io import add_tiles

from tests.benchmarks.peer_readers import protocol


def open_slide(
    path: Path, corners: NDArray[np.int64], size: int, options: list[str]
) -> protocol.Read:
    wsi = open_wsi(path, reader=options[0], store=None)
    add_tiles(
        wsi, "tiles", corners, TileSpec.from_wsidata(wsi, size), np.zeros(len(corners), np.int64)
    )
    dataset = TileImagesDataset(wsi, "tiles")

    def read(out: NDArray[np.uint8]) -> None:
        for k in range(len(dataset)):
            out[k] = dataset[k]["image"]

    return read


if __name__ == "__main__":
    protocol.serve(open_slide)
