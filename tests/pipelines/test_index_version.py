"""The same slide gives the same shards, quality and fingerprint as before, or `INDEX_VERSION` says that it does not.

`acinus prepare --resume` keeps what an earlier version indexed. A change that makes other shards of the same slide must raise
`pipelines.index.INDEX_VERSION`, or a cohort would be half of one version and half of another. When this test fails: if the change
was meant, raise INDEX_VERSION and write the new digests here; if it was not, the change is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.grid import PatchSpec
from pipelines.index import INDEX_VERSION, IndexedSlide, index_slide
from pipelines.slides.opening import open_slide

VERSION = 1
GOLDEN = {
    ("svs-jpeg", "plain"): "95506c306172d0d2",
    ("svs-jpeg", "shrunk"): "cb97cdf593242031",
    ("svs-jpeg", "overlap"): "ddfc3c141728518f",
    ("svs-jpeg", "stain"): "62f29eceaee9957b",
    ("tiff-deflate", "plain"): "1c5c0b3a7b2b7f49",
    ("tiff-deflate", "shrunk"): "f2538954328cc694",
    ("tiff-deflate", "overlap"): "e0942a0637f35de3",
    ("tiff-deflate", "stain"): "922dac394b5f886e",
    ("ome-jpeg", "plain"): "b3ef177dd18ed3db",
    ("ome-jpeg", "shrunk"): "dcdddb3766d269a7",
    ("ome-jpeg", "overlap"): "89197dcd99e50d85",
    ("ome-jpeg", "stain"): "b8a517e28fe22765",
    ("philips", "plain"): "38533f2f14a888e0",
    ("philips", "shrunk"): "3bf62c8d037499e2",
    ("philips", "overlap"): "09a957b2dc2155f1",
    ("philips", "stain"): "9a9d6959d1e90385",
    ("dicom-jpeg", "plain"): "3bbdf5dcf97854db",
    ("dicom-jpeg", "shrunk"): "eae2621dc871fefb",
    ("dicom-jpeg", "overlap"): "d621b17837bd8d9b",
    ("dicom-jpeg", "stain"): "f32a84ed6faff1d0",
    ("ndpi", "plain"): "18df9c71306d330b",
    ("ndpi", "shrunk"): "fb8ae1f9386fefb7",
    ("ndpi", "overlap"): "66e8e4f9c85b267c",
    ("ndpi", "stain"): "3c6ac8a095a9573b",
}
SPECS = {
    "plain": PatchSpec(size=64, mpp=0.5),
    "shrunk": PatchSpec(size=32, mpp=1.0, min_tissue=0.5),
    "overlap": PatchSpec(size=64, mpp=0.6, overlap=16),
    "stain": PatchSpec(size=64, mpp=0.5, stain="macenko", icc=True),
}
ELSEWHERE = {"slide_id", "slide_uri", "tile_uri", "tile_version"}
"""Columns that say where a slide is stored and when it was written."""


def digest(indexed: IndexedSlide) -> str:
    """Of all that resuming keeps; measured values to three digits, since vector units round the last ones differently."""
    shards = [
        {name: value for name, value in row.items() if name not in ELSEWHERE}
        for row in indexed.shards.to_pylist()
    ]
    for row in shards:
        row["stain"] = json.loads(row["stain"] or "{}")
    values = [
        shards,
        indexed.quality.to_dict(),
        indexed.fingerprint.to_dict(),
        indexed.record.icc,
        (indexed.record.height, indexed.record.width),
    ]
    text = json.dumps(_rounded(values), sort_keys=True).encode()
    pictures = indexed.thumbnail.tobytes() + indexed.tissue.tobytes()
    return hashlib.sha256(text + pictures).hexdigest()[:16]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def test_the_digests_belong_to_this_version() -> None:
    assert INDEX_VERSION == VERSION


@pytest.mark.parametrize(
    "name", ["svs-jpeg", "tiff-deflate", "ome-jpeg", "philips", "dicom-jpeg", "ndpi"]
)
@pytest.mark.parametrize("spec", SPECS)
def test_a_slide_is_indexed_as_before(
    small_slide: Callable[[str], Path], name: str, spec: str
) -> None:
    with open_slide(str(small_slide(name))) as slide:
        indexed = index_slide(slide, SPECS[spec], organisation="golden")
    assert digest(indexed) == GOLDEN[name, spec]
