"""How near the reader comes to the decoder: patches/s of CPU time beside raw libjpeg-turbo and openslide-python.

    python -m tests.benchmarks.reader [--json FILE] [--quick]

The slide is generated H&E in a temporary folder, 256-px tiles. Raw libjpeg-turbo decodes each tile into one buffer and does
nothing else; its rate is given in patches of the case's area, so that 224- and 512-px patches compare. Ours is `fetch_shards` +
`decode_patches`: index look-up, file reading and batch assembly included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pyarrow as pa
import simplejpeg
import tifffile

from pipelines.grid import PatchSpec, patch_grid
from pipelines.patches import decode_patches, fetch_shards
from pipelines.shards import SIDE, shard_rows
from pipelines.slides.slide import open_slide
from pipelines.slides.synthetic import generate_tile
from pipelines.slides.tiled import TiledSlide
from tests.benchmarks import harness

TILE = 256
MPP = 0.25
OFFSET = 100
"""Pixels by which unaligned patches miss the tiles' grid."""


def write_slide(path: Path, *, subsampling: tuple[int, int], side: int) -> None:
    """One level of H&E, `side` tiles square."""
    rng = np.random.default_rng(0)
    tiles = [generate_tile(name, rng, side=2 * TILE) for name in ("benign", "gleason_3", "gleason_4", "gleason_5")]
    rows = [np.concatenate([tiles[(row + column) % 4] for column in range(side // 2)], axis=1) for row in range(side // 2)]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            np.concatenate(rows),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": 85},
            subsampling=subsampling,
            tile=(TILE, TILE),
            resolution=(1e4 / MPP, 1e4 / MPP),
            resolutionunit="CENTIMETER",
            metadata=None,
        )


def shards_of(path: Path, *, size: int, offset: int) -> pa.Table:
    """All whole patches of the slide, shifted by `offset` pixels, in shards of the default side, scaled to the size."""
    with open_slide(str(path)) as slide:
        spec = PatchSpec(size=size, mpp=MPP, min_tissue=0.0)
        grid = patch_grid(slide, np.ones((64, 64), bool), spec)
        moved = {name: getattr(grid, name) + offset for name in ("x", "y", "read_x", "read_y")}
        inside = (moved["x"] + size <= slide.size.width) & (moved["y"] + size <= slide.size.height)
        kept = {name: values[inside] for name, values in {**moved, "column": grid.column, "row": grid.row}.items()}
        grid = type(grid)(level=grid.level, scale=grid.scale, read_size=grid.read_size, **kept)
        return shard_rows(slide, grid, spec, organisation="bench", side=SIDE * TILE // size)


def ours(shards: pa.Table) -> Callable[[], float]:
    """Our rate: one shard after the other, as a read task and its consumer would, into one buffer as raw and OpenSlide."""
    size = shards["patch_size"][0].as_py()
    out = np.empty((max(shards["n_patches"].to_pylist()), size, size, 3), np.uint8)

    def work() -> int:
        return sum(len(decode_patches(fetch_shards(shards.slice(k, 1)), out=out)["patch"]) for k in range(len(shards)))

    return lambda: harness.cpu_rate(work)


def raw(path: Path, *, size: int) -> Callable[[], float]:
    """libjpeg-turbo's rate on the same tiles, already in memory, in patches of `size`."""
    slide = open_slide(str(path))
    assert isinstance(slide, TiledSlide)
    index, content = slide.indexes[0], path.read_bytes()
    tiles = [content[a : a + n] for a, n in zip(index.offsets.tolist(), index.lengths.tolist(), strict=True)]
    buffer = np.empty((TILE, TILE, 3), np.uint8)

    def work() -> int:
        for tile in tiles:
            simplejpeg.decode_jpeg(tile, "RGB", fastdct=False, fastupsample=False, buffer=buffer)
        return len(tiles)

    return lambda: harness.cpu_rate(work) * TILE**2 / size**2


def by_openslide(path: Path, shards: pa.Table, *, size: int) -> Callable[[], float]:
    """openslide-python's rate: one `read_region` a patch, RGB into a batch."""
    places = [(x, y) for row in shards.to_pylist() for x, y in zip(row["x"], row["y"], strict=True)][::3]
    batch = np.empty((len(places), size, size, 3), np.uint8)

    def work() -> int:
        with openslide.OpenSlide(path) as handle:
            for k, place in enumerate(places):
                batch[k] = np.asarray(handle.read_region(place, 0, (size, size)))[..., :3]
        return len(places)

    return lambda: harness.cpu_rate(work)


CASES = (
    ("aligned-256-420", 256, 0, (2, 2), 0.90, 6.0),
    ("unaligned-256-420", 256, OFFSET, (2, 2), 0.78, 5.0),
    ("aligned-256-444", 256, 0, (1, 1), 0.90, 6.0),
    ("unaligned-256-444", 256, OFFSET, (1, 1), 0.78, 5.0),
    ("aligned-224-420", 224, 0, (2, 2), None, None),
    ("aligned-512-420", 512, 0, (2, 2), None, None),
)
"""Case, patch size, offset, chroma subsampling, goal against libjpeg-turbo, goal against OpenSlide."""


def main() -> None:
    given = harness.arguments(__doc__ or "")
    pairs, side = (3, 16) if given.quick else (9, 32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case, size, offset, subsampling, goal, peer_goal in CASES:
            path = Path(folder) / f"{subsampling[0]}.tif"
            if not path.exists():
                write_slide(path, subsampling=subsampling, side=side)
            shards = shards_of(path, size=size, offset=offset)
            named = {"unit": "patches/s/core", "pairs": pairs}
            rows.append(
                harness.compare(case, ours(shards), raw(path, size=size), reference="libjpeg-turbo", goal=goal, **named)  # type: ignore[arg-type]
            )
            peer = by_openslide(path, shards, size=size)
            rows.append(
                harness.compare(f"openslide-{case}", ours(shards), peer, reference="openslide-python", goal=peer_goal, **named)  # type: ignore[arg-type]
            )
    harness.report("reader", rows, given, packages=("simplejpeg", "openslide-python", "tifffile", "pyarrow", "numpy"))


if __name__ == "__main__":
    main()
