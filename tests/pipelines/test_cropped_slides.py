"""Slides scanned in part: what QuPath draws on the tissue labels the patches of that tissue."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from pipelines import cohort, storage
from pipelines.annotations import (
    PATTERNS,
    UNLABELLED,
    AnnotationFrame,
    patch_labels,
    read_annotations,
)
from pipelines.cohort_shards import load_shards
from pipelines.grid import PatchSpec
from pipelines.manifest import read_manifest
from pipelines.preparation import PrepareConfig
from pipelines.prepare_slide import prepare_slide
from pipelines.shards import shards_of
from tests.support.vendor_slides import TILE, write_mirax

AREA = (1024, 512, 4096, 2048)
"""Left, top, width and height of what is scanned, of 8192 x 4096 pixels."""
REGION = (409, 614, 2048, 1433)
"""Corners of a region over the left half of the core, relative to the scanned area."""


def _stained(width: int, height: int) -> np.ndarray:
    """Glass with one stained bar."""
    rng = np.random.default_rng(3)
    pixels = np.full((height, width, 3), 243, np.uint8)
    bar = pixels[int(0.3 * height) : int(0.7 * height), int(0.1 * width) : int(0.9 * width)]
    grain = rng.random((bar.shape[0] // 16 + 1, bar.shape[1] // 16 + 1, 1)).repeat(16, 0)
    grain = grain.repeat(16, 1)[: bar.shape[0], : bar.shape[1]]
    bar[:] = np.array([225, 150, 195]) - np.array([60, 80, 40]) * grain
    return pixels


def _keep_tiles(index: Path, columns: int, scanned: Callable[[int, int], bool]) -> None:
    """Remove all tiles that were not scanned from the index of a MIRAX slide's two levels."""
    raw = bytearray(index.read_bytes())
    (begin,) = struct.unpack_from("<i", raw, 37)
    for level in range(2):
        (record,) = struct.unpack_from("<i", raw, begin + 4 * level)
        (page,) = struct.unpack_from("<i", raw, record + 4)
        (count,) = struct.unpack_from("<i", raw, page)
        entries = [struct.unpack_from("<4i", raw, page + 8 + 16 * n) for n in range(count)]
        kept = [entry for entry in entries if scanned(entry[0] % columns, entry[0] // columns)]
        struct.pack_into("<i", raw, page, len(kept))
        for n, entry in enumerate(kept):
            struct.pack_into("<4i", raw, page + 8 + 16 * n, *entry)
    index.write_bytes(raw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirax")
    x, y, width, height = AREA
    pixels = np.full((4096, 8192, 3), 243, np.uint8)
    pixels[y : y + height, x : x + width] = _stained(width, height)
    write_mirax(folder / "s.mrxs", pixels)
    _keep_tiles(
        folder / "s" / "Index.dat",
        8192 // TILE,
        lambda c, r: x <= c * TILE < x + width and y <= r * TILE < y + height,
    )
    return folder


@pytest.mark.parametrize(
    ("origin", "offset"), [("", (0, 0)), ("bounds", (0, 0)), ("slide", AREA[:2])]
)
def test_regions_label_the_patches_that_they_are_drawn_on(
    folder: Path, tmp_path: Path, origin: str, offset: tuple[int, int]
) -> None:
    x0, y0, x1, y1 = (corner + offset[k % 2] for k, corner in enumerate(REGION))
    ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "gleason_4"}},
    }
    (tmp_path / "s.geojson").write_text(json.dumps(feature))
    text = f"slide,annotation,annotation_origin\n{folder}/s.mrxs,s.geojson,{origin}\n"
    (tmp_path / "m.csv").write_text(text)
    out = storage.as_uri(tmp_path / "out")
    config = PrepareConfig(manifest=str(tmp_path / "m.csv"), out=out, spec=PatchSpec(size=64))
    outcome = prepare_slide(read_manifest(config.manifest)[0], config)
    assert outcome.row is not None, outcome.error
    table = cohort.table_of([outcome.row])
    storage.write_bytes(storage.join(out, "cohort.parquet"), cohort.to_parquet(table))

    shards = shards_of(load_shards(out))
    x, y = (np.concatenate([getattr(shard, axis) for shard in shards]) for axis in ("x", "y"))
    side = shards[0].patch_side
    frame = AnnotationFrame.of_row(asdict(outcome.row))
    labels = patch_labels(read_annotations(outcome.row.annotation, frame).regions, x, y, side)
    left, top, right, bottom = (corner + AREA[k % 2] for k, corner in enumerate(REGION))
    inside = (x >= left) & (x + side <= right) & (y >= top) & (y + side <= bottom)
    outside = (x + side <= left) | (x >= right) | (y + side <= top) | (y >= bottom)
    assert inside.sum() > 20
    assert set(labels[inside].tolist()) == {PATTERNS.index("gleason_4")}
    assert set(labels[outside].tolist()) == {UNLABELLED}
