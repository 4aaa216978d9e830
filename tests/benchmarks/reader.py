"""How near the reader comes to the decoder: patches/s of CPU time compared with raw libjpeg-turbo
and openslide-python.

    python -m tests.benchmarks.reader [--json FILE] [--quick]

The slide is generated H&E in a temporary folder, with 256-px tiles unless the case says otherwise.
Raw libjpeg-turbo decodes each tile into one buffer and does nothing else; its rate is given in
patches of the case's area, so that 224- and 512-px patches compare. `scaled-N` are patches at 1/N
of a slide that has one level only, by DCT scaling, compared with decoding whole and averaging
areas; the difference between the two in grey levels is printed. Ours is `fetch_shards` +
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
from pipelines.patches import decode_patches, fetch_shards, resample
from pipelines.shards import SIDE, shard_rows
from pipelines.slides.geometry import Size
from pipelines.slides.opening import open_slide
from pipelines.slides.tiled import TiledSlide, fetch_tiles
from pipelines.slides.tiles import decode_windows, tile_buffer
from pipelines.synthetic.tissue import generate_tile
from tests.benchmarks import harness

TILE = 256
MPP = 0.25
OFFSET = 100
"""Pixels by which unaligned patches miss the tiles' grid."""


def write_slide(path: Path, *, subsampling: tuple[int, int], side: int, tile: int = TILE) -> None:
    """One level of H&E, `side` tiles of 256 px square, whatever the tiles that it is written in."""
    rng = np.random.default_rng(0)
    tiles = [
        generate_tile(name, rng, side=2 * TILE)
        for name in ("benign", "gleason_3", "gleason_4", "gleason_5")
    ]
    rows = [
        np.concatenate([tiles[(row + column) % 4] for column in range(side // 2)], axis=1)
        for row in range(side // 2)
    ]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            np.concatenate(rows),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": 85},
            subsampling=subsampling,
            tile=(tile, tile),
            resolution=(1e4 / MPP, 1e4 / MPP),
            resolutionunit="CENTIMETER",
            metadata=None,
        )


def shards_of(path: Path, *, size: int, offset: int, mpp: float = MPP) -> pa.Table:
    """All whole patches of the slide, shifted by `offset` pixels, in shards of the default side,
    scaled to the size."""
    with open_slide(str(path)) as slide:
        spec = PatchSpec(size=size, mpp=mpp, min_tissue=0.0)
        grid = patch_grid(slide, np.ones((64, 64), bool), spec)
        moved = {name: getattr(grid, name) + offset for name in ("x", "y", "read_x", "read_y")}
        inside = (moved["x"] + size <= slide.size.width) & (moved["y"] + size <= slide.size.height)
        kept = {
            name: values[inside]
            for name, values in {**moved, "column": grid.column, "row": grid.row}.items()
        }
        grid = type(grid)(level=grid.level, scale=grid.scale, read_size=grid.read_size, **kept)
        return shard_rows(slide, grid, spec, organisation="bench", side=SIDE * TILE // size)


def ours(shards: pa.Table) -> Callable[[], float]:
    """Our rate: one shard after the other, as a read task and its consumer would, into one buffer
    as raw and OpenSlide."""
    size = shards["patch_size"][0].as_py()
    out = np.empty((max(shards["n_patches"].to_pylist()), size, size, 3), np.uint8)

    def work() -> int:
        return sum(
            len(decode_patches(fetch_shards(shards.slice(k, 1)), out=out)["patch"])
            for k in range(len(shards))
        )

    return lambda: harness.cpu_rate(work)


def raw(path: Path, *, size: int) -> Callable[[], float]:
    """libjpeg-turbo's rate on the same tiles, already in memory, in patches of `size`."""
    slide = open_slide(str(path))
    assert isinstance(slide, TiledSlide)
    index, content = slide.indexes[0], path.read_bytes()
    tiles = [
        content[a : a + n]
        for a, n in zip(index.offsets.tolist(), index.lengths.tolist(), strict=True)
    ]
    side = index.grid.tile.width
    buffer = tile_buffer(index.grid.tile)  # where libjpeg-turbo is at its fastest

    def work() -> int:
        for tile in tiles:
            simplejpeg.decode_jpeg(tile, "RGB", fastdct=False, fastupsample=False, buffer=buffer)
        return len(tiles)

    return lambda: harness.cpu_rate(work) * side**2 / size**2


def averaged(shards: pa.Table, path: Path) -> Callable[[], np.ndarray]:
    """The first shard's patches by decoding whole and averaging areas."""
    row = shards.slice(0, 1).to_pylist()[0]
    side, scale, size = row["read_size"], row["scale"], row["patch_size"]

    def work() -> np.ndarray:
        out = np.empty((row["n_patches"], size, size, 3), np.uint8)
        with open_slide(str(path)) as slide:
            assert isinstance(slide, TiledSlide)
            index = slide.indexes[0]
            x, y = (np.array(row[name], np.int64) * scale for name in ("read_x", "read_y"))
            native = np.empty((len(x), side * scale, side * scale, 3), np.uint8)
            numbers = index.grid.covering(x, y, Size(side * scale, side * scale))
            tiles = fetch_tiles(
                "bench", index.store, index.offsets[numbers], index.lengths[numbers]
            )
            streams = dict(zip(numbers.tolist(), tiles.streams(), strict=True))
            decode_windows("bench", index.grid, "jpeg", streams, x=x, y=y, out=native)
        resample(native, out)
        return out

    return work


def scaled_row(path: Path, scale: int, pairs: int) -> tuple[harness.Row, dict[str, float]]:
    """DCT scaling compared with decoding whole and averaging: rates, and differences of pixels."""
    shards = shards_of(path, size=256, offset=0, mpp=MPP * scale).slice(0, 1)
    assert shards["scale"].to_pylist() == [scale]
    whole = averaged(shards, path)
    apart = np.abs(decode_patches(fetch_shards(shards))["patch"].astype(int) - whole())
    row = harness.compare(
        f"scaled-{scale}",
        ours(shards),
        lambda: harness.cpu_rate(lambda: len(whole())),
        reference="decode + average",
        unit="patches/s/core",
        pairs=pairs,
    )
    return row, {
        "mean": float(apart.mean()),
        "99th percentile": float(np.percentile(apart, 99)),
        "max": float(apart.max()),
    }


def by_openslide(path: Path, shards: pa.Table, *, size: int) -> Callable[[], float]:
    """openslide-python's rate: one `read_region` a patch, RGB into a batch."""
    corners = [
        (x, y) for row in shards.to_pylist() for x, y in zip(row["x"], row["y"], strict=True)
    ][::7]
    batch = np.empty((len(corners), size, size, 3), np.uint8)

    def work() -> int:
        with openslide.OpenSlide(path) as handle:
            for k, corner in enumerate(corners):
                batch[k] = np.asarray(handle.read_region(corner, 0, (size, size)))[..., :3]
        return len(corners)

    return lambda: harness.cpu_rate(work)


CASES = (
    ("aligned-256-420", 256, 0, (2, 2), TILE, 0.90, 6.0),
    ("unaligned-256-420", 256, OFFSET, (2, 2), TILE, 0.78, 5.0),
    ("aligned-256-444", 256, 0, (1, 1), TILE, 0.90, 6.0),
    ("unaligned-256-444", 256, OFFSET, (1, 1), TILE, 0.78, 5.0),
    ("aligned-224-420", 224, 0, (2, 2), TILE, None, None),
    ("aligned-512-420", 512, 0, (2, 2), TILE, None, None),
    ("aligned-256-420-tiles-240", 256, 0, (2, 2), 240, None, None),
    ("aligned-256-420-tiles-512", 256, 0, (2, 2), 512, None, None),
)
"""Case, patch size, offset, chroma subsampling, tile, goal against libjpeg-turbo, goal against
OpenSlide."""


LIMITS = {
    "aligned": "decoding, then fetching and writing to memory (the raw rate writes to the cache)",
    "unaligned": "decoding 6 % of the tiles twice at edges of shards, and copying each patch once",
    "aligned-224": "decoding: tiles at edges belong to two shards, and no patch is a whole tile",
    "scaled": "reading the coefficients of every tile, which scaling does not spare",
    "openslide": "our own decoding: its rate is bounded by the raw one",
}


def main() -> None:
    given = harness.arguments(__doc__ or "")
    pairs, side = (3, 32) if given.quick else (9, 64)
    rows, errors = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for case, size, offset, subsampling, tile, goal, peer_goal in CASES:
            path = Path(folder) / f"{subsampling[0]}-{tile}.tif"
            if not path.exists():
                write_slide(path, subsampling=subsampling, side=side, tile=tile)
            shards = shards_of(path, size=size, offset=offset)
            named = {"unit": "patches/s/core", "pairs": pairs}
            rows.append(
                harness.compare(
                    case,
                    ours(shards),
                    raw(path, size=size),
                    reference="libjpeg-turbo",
                    goal=goal,
                    **named,
                )  # type: ignore[arg-type]
            )
            peer = by_openslide(path, shards, size=size)
            rows.append(
                harness.compare(
                    f"openslide-{case}",
                    ours(shards),
                    peer,
                    reference="openslide-python",
                    goal=peer_goal,
                    **named,
                )  # type: ignore[arg-type]
            )
        for scale in (2, 4, 8):
            row, errors[f"scaled-{scale}"] = scaled_row(
                Path(folder) / f"2-{TILE}.tif", scale, pairs
            )
            rows.append(row)
    packages = ("simplejpeg", "openslide-python", "tifffile", "pyarrow", "numpy")
    harness.report(
        "reader", rows, given, packages=packages, limits=LIMITS, extra={"levels apart": errors}
    )
    for name, apart in errors.items():
        print(
            f"{name}: "
            + ", ".join(f"{what} {value:.2f}" for what, value in apart.items())
            + " grey levels from decode + average"
        )


if __name__ == "__main__":
    main()
