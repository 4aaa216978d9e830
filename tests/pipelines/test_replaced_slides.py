"""A slide replaced after it was prepared: its shards never show the other one's pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile

from pipelines import storage
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.opening import open_slide
from pipelines.synthetic.tissue import generate_tile


def _write(path: Path, pattern: str) -> Path:
    """Uncompressed: another slide of the same size has the same tile index."""
    pixels = generate_tile(pattern, np.random.default_rng(0), side=512)
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        tile=(128, 128),
        resolution=(20_000, 20_000),
        resolutionunit=3,
        metadata=None,
    )
    return path


def _shards(uri: str, *, size: int = 128) -> pa.Table:
    with open_slide(uri) as slide:
        return index_slide(slide, PatchSpec(size=size, mpp=0.5), organisation="org").shards


def test_a_slide_replaced_on_the_local_disk(tmp_path: Path) -> None:
    path = _write(tmp_path / "slide.tif", "gleason_4")
    shards = _shards(str(path))
    fetch_shards(shards)
    size = path.stat().st_size
    _write(path, "benign")
    assert path.stat().st_size == size
    with pytest.raises(
        BrokenSlide,
        match=r"has been replaced by another file since it was indexed; prepare it again",
    ):
        fetch_shards(shards)


def test_a_slide_replaced_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"{s3_bucket}/slide.tif"
    storage.write_file(uri, _write(tmp_path / "one.tif", "gleason_4"))
    shards = _shards(uri)
    fetch_shards(shards)
    with open_slide(uri) as slide:
        storage.write_file(uri, _write(tmp_path / "other.tif", "benign"))
        with pytest.raises(BrokenSlide, match="has been replaced"):
            fetch_shards(shards)
        with pytest.raises(BrokenSlide, match=r"slide\.tif has been replaced"):
            slide.thumbnail(64)


def test_a_format_whose_pixels_travel(small_slide: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "slide.ndpi"
    path.write_bytes(small_slide("ndpi").read_bytes())
    shards = _shards(str(path), size=64)
    fetch_shards(shards)
    os.utime(path, (1_800_000_000, 1_800_000_000))
    with pytest.raises(BrokenSlide, match="has been replaced"):
        fetch_shards(shards)


def test_patches_of_two_sizes_are_not_a_batch(tmp_path: Path) -> None:
    uri = str(_write(tmp_path / "slide.tif", "gleason_4"))
    mixed = pa.concat_tables([_shards(uri), _shards(uri, size=64)])
    with pytest.raises(ValueError, match=r"patches of \[64, 128\] px"):
        decode_patches(fetch_shards(mixed))
