"""Blocks that were not scanned, filled with black or another colour: no tissue, no patch, and in
the quality file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines import void
from pipelines.grid import PatchSpec
from pipelines.index import IndexedSlide, index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.quality import artefacts
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.synthetic.svs import SvsMetadata, write_svs
from pipelines.synthetic.tissue import generate_tile
from pipelines.tissue import tissue_mask
from pipelines.void import filled_tiles
from tests.support.shared_data import needs_shared_data, shared_data
from tests.support.thumbnails import INK, THUMBNAIL_MPP, cores, iou, line

FILLS = {"black": 0, "white": 255, "paper": 240, "grey": 128}
TILE, MISSING = 128, 18


def blocks(tissue: NDArray[np.bool_], *, side: int, share: float) -> NDArray[np.bool_]:
    """Tiles of a lattice that are missing, all within tissue; bool of the picture's shape."""
    rng = np.random.default_rng(4)
    missing = np.zeros_like(tissue)
    for top in range(0, tissue.shape[0], side):
        for left in range(0, tissue.shape[1], side):
            tile = slice(top, top + side), slice(left, left + side)
            missing[tile] = tissue[tile].all() and rng.random() < share
    return missing


def test_black_blocks_within_tissue_are_void() -> None:
    drawn = cores(width_um=1000)
    missing = blocks(drawn.tissue, side=8, share=0.3)
    seen = drawn.photograph().copy()
    seen[missing] = 0
    found = artefacts(seen, mpp=THUMBNAIL_MPP)
    assert iou(found.void, missing) > 0.95
    assert not (found.pen | found.edge | found.bubble).any()
    mask = tissue_mask("a", seen, mpp=THUMBNAIL_MPP, found=found)
    assert not (mask & missing).any()
    assert (mask & drawn.tissue).sum() > 0.3 * drawn.tissue.sum()


def test_black_with_jpeg_noise_is_void() -> None:
    drawn = cores(width_um=1000)
    missing = blocks(drawn.tissue, side=8, share=0.3)
    seen = drawn.photograph().copy()
    noise = np.random.default_rng(1).integers(0, 10, (int(missing.sum()), 3))
    seen[missing] = noise
    assert iou(artefacts(seen, mpp=THUMBNAIL_MPP).void, missing) > 0.9


def test_black_borders_are_void() -> None:
    drawn = cores(width_um=800)
    seen = drawn.photograph().copy()
    seen[:, :300] = 0
    seen[:40] = 0
    found = artefacts(seen, mpp=THUMBNAIL_MPP)
    assert found.void.mean() == pytest.approx(0.3 + 0.7 * 0.04, abs=0.002)
    assert found.void[:, :300].all()


@pytest.mark.parametrize("colour", INK)
def test_ink_and_folds_are_not_void(colour: str) -> None:
    drawn = cores(width_um=1000)
    drawn.light[drawn.tissue & line([(300, 100), (330, 900)], 6)] **= 3  # three layers of tissue
    drawn.absorb("pen", line([(60, 150), (400, 60), (700, 300)], 40), INK[colour], soft=2)
    assert not artefacts(drawn.photograph(), mpp=THUMBNAIL_MPP).void.any()


@needs_shared_data
def test_real_slides_without_voids_have_none() -> None:
    folder = shared_data()
    assert folder is not None
    with open_slide(str(folder / "wsi" / "CMU-1-Small-Region.svs")) as slide:
        seen, mpp = slide.thumbnail(1024), slide.mpp * slide.size.width / 766
    assert not artefacts(seen, mpp=mpp).void.any()
    for path in sorted((folder / "histoqc").glob("*.png")):
        if "mask" not in path.name:
            seen = np.asarray(Image.open(path).convert("RGB"))
            assert artefacts(seen, mpp=8.0).void.mean() < 0.001, path.name


def slide_with_holes(path: Path, fill: int) -> None:
    """A slide of 0.5 um per pixel whose tissue lacks 18 of its 112 tiles, within."""
    pixels = np.full((10 * TILE, 16 * TILE, 3), 243, np.uint8)
    tile = generate_tile("gleason_4", np.random.default_rng(0), side=8 * TILE)
    pixels[TILE : 9 * TILE, TILE : 15 * TILE] = np.tile(tile, (1, 2, 1))[:, : 14 * TILE]
    tissue = np.zeros(pixels.shape[:2], bool)
    tissue[2 * TILE : 8 * TILE, 2 * TILE : 14 * TILE] = True  # of which any tile may be missing
    pixels[blocks(tissue, side=TILE, share=0.35)] = fill
    write_svs(path, pixels, SvsMetadata(mpp=0.5, tile=TILE))


def indexed(path: Path, spec: PatchSpec) -> IndexedSlide:
    with open_slide(str(path)) as slide:
        return index_slide(slide, spec, organisation="org")


@pytest.mark.parametrize("fill", FILLS)
def test_no_patch_is_mostly_of_tiles_that_were_not_scanned(tmp_path: Path, fill: str) -> None:
    slide_with_holes(tmp_path / "a.svs", FILLS[fill])
    found = indexed(tmp_path / "a.svs", PatchSpec(size=112, mpp=0.5))
    patches = decode_patches(fetch_shards(found.shards))["patch"].astype(int)
    filled = (np.abs(patches - FILLS[fill]).max(axis=3) <= 2).mean(axis=(1, 2))
    assert len(patches) >= 10
    assert filled.max() < 0.3
    assert found.quality.void == pytest.approx(MISSING / 160, abs=0.01)
    assert found.quality.missing == pytest.approx(MISSING / 112, abs=0.06)
    assert any("of the tissue was not scanned" in said for said in found.quality.sentences)
    assert found.picture().startswith(b"\x89PNG")


def test_tiles_are_decoded_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their pixels: 64 tiles of 4096 pixels would be gigabytes."""
    slide_with_holes(tmp_path / "a.svs", 255)
    with open_slide(str(tmp_path / "a.svs")) as slide:
        thumbnail = slide.thumbnail(512)
        mask = tissue_mask("a", thumbnail, mpp=2.0, found=artefacts(thumbnail, mpp=2.0))
        whole = filled_tiles(slide, mask, (243.0, 243.0, 243.0))
        read, counts = slide.read_regions, []

        def count(origins: list[Point], level: int, size: Size) -> NDArray[np.uint8]:
            counts.append(len(origins))
            return read(origins, level, size)

        monkeypatch.setattr(slide, "read_regions", count)
        monkeypatch.setattr(void, "BATCH_PIXELS", 3 * TILE * TILE, raising=False)
        found = filled_tiles(slide, mask, (243.0, 243.0, 243.0))
    assert len(counts) > 1
    assert max(counts) == 3
    assert found.any()
    np.testing.assert_array_equal(found, whole)


def test_burnt_out_lumina_wider_than_a_tile_are_not_void(tmp_path: Path) -> None:
    """They are of exactly one colour, as a fill is, but don't end where a tile does."""
    pixels = np.full((10 * TILE, 16 * TILE, 3), 255, np.uint8)
    tile = generate_tile("gleason_4", np.random.default_rng(0), side=8 * TILE)
    pixels[TILE : 9 * TILE, TILE : 15 * TILE] = np.tile(tile, (1, 2, 1))[:, : 14 * TILE]
    rows, columns = np.mgrid[: 10 * TILE, : 16 * TILE]
    for row, column in ((3.4, 3.7), (6.2, 4.5), (4.5, 8.1), (5.3, 12.4)):
        inside = (rows - row * TILE) ** 2 + (columns - column * TILE) ** 2 < (1.7 * TILE) ** 2
        pixels[inside] = 255
    write_svs(tmp_path / "a.svs", pixels, SvsMetadata(mpp=0.5, tile=TILE))
    found = indexed(tmp_path / "a.svs", PatchSpec(size=112, mpp=0.5))
    assert found.tissue[round(3.4 * TILE), round(3.7 * TILE)], "a lumen belongs to tissue"
    assert found.quality.missing == found.quality.void == 0.0
