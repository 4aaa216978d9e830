"""Rows of the shard table: declared once, checked when read, with one side of a patch."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines import cohort, index
from pipelines.grid import PatchSpec
from pipelines.index import IndexedSlide, index_slide
from pipelines.shards import DECISIVE, SCHEMA, Shard, shards_of, to_table
from pipelines.slides.opening import open_slide

ROOT = Path(__file__).parents[2]


def indexed(path: Path, spec: PatchSpec) -> IndexedSlide:
    with open_slide(str(path)) as slide:
        return index_slide(slide, spec, organisation="org", shard_side=4)


def test_rows_survive_the_table_and_parquet(generated_slide: Path) -> None:
    table = indexed(generated_slide, PatchSpec(size=224, mpp=0.5)).shards
    shards = shards_of(table)
    assert to_table(Shard, shards).equals(table)
    again = cohort.from_parquet(cohort.to_parquet(table), SCHEMA)
    assert [shard.name for shard in shards_of(again)] == [shard.name for shard in shards]
    pieces = pa.concat_tables([table.slice(1, 1), table.slice(0, 1)])  # sliced and in chunks
    assert [shard.shard for shard in shards_of(pieces)] == [1, 0]
    np.testing.assert_array_equal(shards_of(pieces)[0].x, shards[1].x)


def test_every_decisive_column_changes_the_name_and_no_other(generated_slide: Path) -> None:
    [shard] = shards_of(indexed(generated_slide, PatchSpec(size=224, mpp=0.5)).shards.slice(0, 1))
    skipped = {"transport", "shard", "n_patches"}  # part of the name, or checked against others
    for column in sorted(set(SCHEMA.names) - skipped):
        value = getattr(shard, column)
        other = value + b"x" if isinstance(value, bytes) else value
        other = value + "x" if isinstance(value, str) else other
        other = not value if isinstance(value, bool) else other
        other = value + 1 if other is value else other
        changed = dataclasses.replace(shard, **{column: other})
        assert (changed.name != shard.name) == (column in DECISIVE), column


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"transport": "pigeon"}, "transport: 'pigeon'"),
        ({"tile_width": 0}, "tile_width: 0"),
        ({"mpp": 0.0}, "mpp: 0.0"),
        ({"mpp": float("nan")}, "mpp: nan"),
        ({"read_size": -1}, "read_size: -1"),
        ({"n_patches": 1}, "number of x: "),
        ({"y": np.zeros(0, np.int32)}, "number of y: 0"),
        ({"tile_length": np.zeros(1, np.int64)}, "number of tile_length: 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_row_that_no_shard_can_be_is_refused(
    generated_slide: Path, change: dict[str, object], named: str
) -> None:
    [shard] = shards_of(indexed(generated_slide, PatchSpec(size=224, mpp=0.5)).shards.slice(0, 1))
    with pytest.raises(ValueError, match=re.escape(f"has an impossible {named}")):
        dataclasses.replace(shard, **change)


@pytest.mark.parametrize(("mpp", "side"), [(0.2335, 224.0), (0.5, 486.0), (0.4, 390.0)])
def test_a_patch_covers_what_its_pixels_are_read_from(
    generated_slide: Path, monkeypatch: pytest.MonkeyPatch, mpp: float, side: float
) -> None:
    """For 0.2335 um, level 0 of 0.23 is read as it is: 224 px, where the spec's mpp gives 227.4."""
    drawn = []
    monkeypatch.setattr(
        index, "overview_picture", lambda _t, _m, boxes, *_, **__: drawn.append(boxes) or b""
    )
    found = indexed(generated_slide, PatchSpec(size=224, mpp=mpp))
    found.picture()
    for shard in shards_of(found.shards):
        assert shard.patch_side == pytest.approx(side, abs=2)
        assert shard.patch_mpp == pytest.approx(shard.patch_side * 0.23 / 224, rel=1e-6)
        steps = np.diff(np.unique(shard.x))
        assert (np.abs(steps - shard.patch_side) <= 1).all(), "patches without overlap touch"
    scale = found.thumbnail.shape[1] / found.record.width
    assert np.ptp(drawn[0][:, [0, 2]], axis=1) == pytest.approx(shard.patch_side * scale)


def test_nobody_else_computes_the_side_of_a_patch() -> None:
    """Labels and heatmap once used another formula than the lattice: they were up to 2 % apart."""
    own = re.compile(r"read_size|downsample|\.size \* .*\.mpp")
    for package in ("training", "app"):
        for path in sorted((ROOT / package).rglob("*.py")):
            assert not own.search(path.read_text()), path
