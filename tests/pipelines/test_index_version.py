"""The same slide gives the same shards, quality and fingerprint as before, or `INDEX_VERSION` says
that it does not.

`acinus prepare --resume` keeps what an earlier version indexed. A change that makes other shards of
the same slide must raise `pipelines.index.INDEX_VERSION`, or a cohort would be half of one version
and half of another. When this test fails: if the change was meant, raise INDEX_VERSION and write
the new digests here; if it was not, the change is wrong.
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

VERSION = 2
GOLDEN = {
    ("svs-jpeg", "plain"): "cdd52d34e90819bf",
    ("svs-jpeg", "shrunk"): "7ebbc4512c761dfa",
    ("svs-jpeg", "overlap"): "ca2ea9688fdde0cf",
    ("svs-jpeg", "stain"): "6f05b635a76a27e2",
    ("tiff-deflate", "plain"): "dfc3e507d591a83f",
    ("tiff-deflate", "shrunk"): "7d29a410aef792da",
    ("tiff-deflate", "overlap"): "3ac62faf34fb5358",
    ("tiff-deflate", "stain"): "429164d2c0117024",
    ("ome-jpeg", "plain"): "9d8222438984d0de",
    ("ome-jpeg", "shrunk"): "8b5f06e2b7557f8e",
    ("ome-jpeg", "overlap"): "256edf3ebcf49870",
    ("ome-jpeg", "stain"): "3e059686c119af24",
    ("philips", "plain"): "3ecd05c2656cac41",
    ("philips", "shrunk"): "7e3e41ee7b8e2588",
    ("philips", "overlap"): "40c77b6309328c14",
    ("philips", "stain"): "be655438de61fec1",
    ("dicom-jpeg", "plain"): "907a7e956e3b4638",
    ("dicom-jpeg", "shrunk"): "2165c15c2baece1c",
    ("dicom-jpeg", "overlap"): "c38dd10b77538dcb",
    ("dicom-jpeg", "stain"): "7e9782c5bd8270c6",
    ("ndpi", "plain"): "0a5a99338f9533d0",
    ("ndpi", "shrunk"): "e5544e1f9a6b8a1f",
    ("ndpi", "overlap"): "23e4d709b308b340",
    ("ndpi", "stain"): "5d3ff82640da2b3f",
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
    """Of all that resuming keeps; measured values to three digits, since vector units round the
    last ones differently."""
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
