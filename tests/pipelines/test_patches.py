"""The patch stream: what a consumer decodes is what the slide shows, with and without Ray, whatever
the worker count."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines import patch_source
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patch_source import read_patches
from pipelines.patches import decode_patches, fetch_shards, resample, stream_patches
from pipelines.read_counts import ReadCounts
from pipelines.shards import SCHEMA, TILES
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.stain import StainFit
from tests.support.process_tree import killing
from tests.support.shared_data import shared_data

_read_task = patch_source._read_task


def shards_of(path: Path, spec: PatchSpec, side: int = 4) -> pa.Table:
    """The slide's shard table."""
    with open_slide(str(path)) as slide:
        return index_slide(slide, spec, organisation="org", shard_side=side).shards


@pytest.mark.parametrize(
    ("spec", "level", "scale", "side"),
    [
        (
            PatchSpec(size=256, mpp=0.23),
            0,
            1,
            256,
        ),  # one patch is one tile: decoded straight into the batch
        (PatchSpec(size=224, mpp=0.23, overlap=32), 0, 1, 224),
        (PatchSpec(size=128, mpp=0.4), 0, 1, 223),  # resampled
        (
            PatchSpec(size=128, mpp=0.5),
            0,
            2,
            139,
        ),  # shrunk by two while it is decoded, then resampled
        (PatchSpec(size=64, mpp=0.92, min_tissue=0.0), 1, 1, 64),  # level 1 as it is
    ],
)
def test_patches_are_the_slides_pixels(
    generated_slide: Path, spec: PatchSpec, level: int, scale: int, side: int
) -> None:
    table = shards_of(generated_slide, spec)
    read = table.select(["transport", "level", "scale", "read_size"]).to_pylist()
    assert {tuple(row.values()) for row in read} == {(TILES, level, scale, side)}
    batch = decode_patches(fetch_shards(table))
    assert batch["patch"].shape == (sum(table["n_patches"].to_pylist()), spec.size, spec.size, 3)
    with open_slide(str(generated_slide)) as slide:
        for k in range(0, len(batch["x"]), 5):
            origin = Point(int(batch["x"][k]), int(batch["y"][k]))
            expected = slide.read_region(origin, level, Size(side, side), scale=scale)[None]
            if side != spec.size:
                native, expected = expected, np.empty((1, spec.size, spec.size, 3), np.uint8)
                resample(native, expected)
            np.testing.assert_array_equal(batch["patch"][k], expected[0])


def test_shard_table_is_deterministic_and_complete(generated_slide: Path) -> None:
    spec = PatchSpec(size=224, mpp=0.5)
    small, again, large = (shards_of(generated_slide, spec, side) for side in (2, 2, 16))
    assert small.schema.equals(SCHEMA)
    assert small.equals(again)

    def places(table: pa.Table) -> list[tuple[int, int]]:
        return sorted(
            (x, y) for row in table.to_pylist() for x, y in zip(row["x"], row["y"], strict=True)
        )

    assert places(small) == places(large)
    assert len(set(places(small))) == len(places(small))
    assert len(small) > len(large)


def test_ray_source_keeps_order_and_pixels(ray_session: None, generated_slide: Path) -> None:
    table = shards_of(generated_slide, PatchSpec(size=128, mpp=0.25), side=3)
    table = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    expected = decode_patches(fetch_shards(table))
    blocks = list(read_patches(table).iter_batches(batch_size=None, batch_format="pyarrow"))
    batches = [decode_patches(block) for block in blocks]
    for name in ("slide_id", "shard", "x", "y", "patch"):
        np.testing.assert_array_equal(
            np.concatenate([batch[name] for batch in batches]), expected[name]
        )  # type: ignore[literal-required]
    encoded = sum(block.nbytes for block in blocks)
    assert encoded < expected["patch"].nbytes / 3


def read_slowly(shards: pa.Table) -> Iterator[pa.Table]:
    """A read task of a store that answers late, so that its process is met alive."""
    time.sleep(0.3)
    yield from _read_task(shards)


def test_each_shard_once_and_in_order_under_killed_readers(
    ray_session: None, cohort_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = [
        shards_of(cohort_folder / f"slide-{k:03}.svs", PatchSpec(size=128, mpp=0.5), side=2)
        for k in (1, 2)
    ]
    table = pa.concat_tables(slides)
    expected = decode_patches(fetch_shards(table))["patch"]
    monkeypatch.setattr(patch_source, "_read_task", read_slowly)
    largest = max(table["n_patches"].to_pylist())
    with killing(
        "ray::ReadShards", below=os.getpid(), seed=5, pause=(0.0, 0.2), max_kills=6
    ) as killed:
        blocks = list(
            read_patches(table, patches_per_task=4 * largest).iter_batches(
                batch_size=None, batch_format="pyarrow"
            )
        )
    assert killed
    assert len(blocks) > len(killed)
    delivered = [
        shard
        for block in blocks
        for shard in zip(*block.select(["slide_id", "shard"]).to_pydict().values(), strict=True)
    ]
    assert delivered == list(
        zip(*table.select(["slide_id", "shard"]).to_pydict().values(), strict=True)
    )
    assert len(set(delivered)) == len(delivered)
    np.testing.assert_array_equal(
        np.concatenate([decode_patches(block)["patch"] for block in blocks]), expected
    )
    print(f"{len(killed)} readers killed: {len(delivered)} shards, each once")


def test_damaged_tile_fails_its_shard(generated_slide: Path) -> None:
    fetched = fetch_shards(shards_of(generated_slide, PatchSpec(size=224, mpp=0.23)).slice(0, 1))
    tiles = fetched["tile_data"].to_pylist()
    tiles[0][0] = tiles[0][0][:800]
    damaged = fetched.set_column(
        fetched.column_names.index("tile_data"),
        "tile_data",
        pa.array(tiles, fetched["tile_data"].type),
    )
    with pytest.raises(BrokenSlide, match="can't be decoded"):
        decode_patches(damaged)


def test_detail_is_never_invented(generated_slide: Path) -> None:
    with pytest.raises(UnsupportedSlide, match="coarser"):
        shards_of(generated_slide, PatchSpec(mpp=0.1))


@pytest.fixture(params=["generated", "real"])
def dicom(request: pytest.FixtureRequest, small_slide: Callable[[str], Path]) -> Path:
    folder = shared_data()
    if request.param == "real" and folder is None:
        pytest.skip(
            "real slides are absent: set ACINUS_SHARED_DATA; the generated equivalent ran instead"
        )
    return (
        folder / "dicom" / "cytomine_wsi"
        if request.param == "real" and folder
        else small_slide("dicom-jpeg")
    )


def test_dicom_travels_as_encoded_tiles(ray_session: None, dicom: Path) -> None:
    table = shards_of(dicom, PatchSpec(mpp=1.0, size=112), side=16)
    assert set(table["transport"].to_pylist()) == {TILES}
    [block] = read_patches(table).iter_batches(batch_size=None, batch_format="pyarrow")
    tiles = [tile for shard in block["tile_data"].to_pylist() for tile in shard]
    assert tiles
    assert all(tile.startswith(b"\xff\xd8") for tile in tiles)
    assert set(block["pixels"].to_pylist()) == {b""}
    np.testing.assert_array_equal(
        decode_patches(block)["patch"], decode_patches(fetch_shards(table))["patch"]
    )


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_stain_is_normalised_where_the_spec_asks_for_it(generated_slide: Path, method: str) -> None:
    """A consumer decodes plain patches and applies the slide's own fit, which shards carry."""
    plain = shards_of(generated_slide, PatchSpec(size=224, mpp=0.23))
    table = shards_of(generated_slide, PatchSpec(size=224, mpp=0.23, stain=method))
    [fit] = set(table["stain"].to_pylist())
    assert StainFit.from_bytes(fit).method == method
    assert set(plain["stain"].to_pylist()) == {b""}
    expected = StainFit.from_bytes(fit).apply(decode_patches(fetch_shards(plain))["patch"])
    np.testing.assert_array_equal(decode_patches(fetch_shards(table))["patch"], expected)
    assert PatchSpec(stain=method).hash != PatchSpec().hash
    with pytest.raises(ValueError, match="macenko, reinhard"):
        PatchSpec(stain="vahadane")


def test_the_stream_without_ray_is_the_same(generated_slide: Path) -> None:
    table = shards_of(generated_slide, PatchSpec(size=128, mpp=0.23), side=3)
    expected = decode_patches(fetch_shards(table))["patch"]
    out = np.empty((max(table["n_patches"].to_pylist()), 128, 128, 3), np.uint8)
    for buffer in (None, out):
        parts = [batch["patch"].copy() for batch in stream_patches(table, out=buffer)]
        assert len(parts) == len(table)
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_reading_is_counted(generated_slide: Path) -> None:
    table = shards_of(generated_slide, PatchSpec(size=224, mpp=0.23))
    counts = ReadCounts.of(fetch_shards(table))
    assert counts.needed == sum(sum(lengths) for lengths in table["tile_length"].to_pylist())
    assert 1.0 <= counts.amplification < 1.1
    assert len(table) <= counts.requests < counts.needed / 20_000
    assert (counts + counts).requests == 2 * counts.requests
    assert str(ReadCounts()) == "nothing"
