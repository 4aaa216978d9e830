"""Regions as QuPath writes them, and the labels they give to patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pipelines.annotations import (
    PATTERNS,
    UNLABELLED,
    Region,
    patch_labels,
    read_regions,
    write_regions,
)
from pipelines.slides.errors import ManifestError


def feature(name: str | None, coordinates: Any, kind: str = "Polygon") -> dict[str, Any]:
    properties = {"objectType": "annotation"} | (
        {} if name is None else {"classification": {"name": name, "color": [200, 0, 0]}}
    )
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def square(x: float, y: float, side: float) -> list[list[tuple[float, float]]]:
    return [[(x, y), (x + side, y), (x + side, y + side), (x, y + side), (x, y)]]


def stored(folder: Path, content: Any) -> str:
    path = folder / "slide.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_regions_survive_writing_and_reading(tmp_path: Path) -> None:
    ring = shapely.box(0, 0, 100, 100).difference(shapely.box(40, 40, 60, 60))
    regions = [
        Region(pattern="gleason_4", outline=ring),
        Region(pattern="benign", outline=shapely.box(200, 0, 300, 50)),
    ]
    write_regions(str(tmp_path / "a.geojson"), regions)
    back = read_regions(str(tmp_path / "a.geojson"))
    assert [region.pattern for region in back] == ["gleason_4", "benign"]
    assert all(
        ours.outline.equals(theirs.outline) for ours, theirs in zip(regions, back, strict=True)
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one: {"type": "FeatureCollection", "features": [one]},
        lambda one: [one],
        lambda one: one,
    ],
)
@pytest.mark.parametrize("name", ["gleason_3", "Gleason 3", "GLEASON-3"])
def test_every_shape_of_file_and_spelling_that_qupath_users_have(
    tmp_path: Path, wrap: Any, name: str
) -> None:
    [region] = read_regions(stored(tmp_path, wrap(feature(name, square(0, 0, 10)))))
    assert region.pattern == "gleason_3"
    assert region.outline.area == 100


def test_ignored_are_starred_classes_and_objects_without_a_class(tmp_path: Path) -> None:
    features = [
        feature("Region*", square(0, 0, 9)),
        feature(None, square(0, 0, 9)),
        feature("Ignore*", square(0, 0, 9)),
    ]
    assert read_regions(stored(tmp_path, features)) == []


def test_a_line_that_crosses_itself_keeps_its_area(tmp_path: Path) -> None:
    bow_tie = [[(0, 0), (10, 10), (10, 0), (0, 10), (0, 0)]]
    [region] = read_regions(stored(tmp_path, [feature("gleason_5", bow_tie)]))
    assert region.outline.is_valid
    assert region.outline.area == pytest.approx(50)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no GeoJSON"),
        ({"type": "Polygon"}, "holds no GeoJSON features"),
        ([feature("Gleson 3", square(0, 0, 1))], "unknown class 'Gleson 3' in feature 1"),
        ([feature("gleason_3", [[0, 0]], "Point")], "feature 1"),
        (
            [feature("gleason_3", [(0, 0), (1, 1)], "LineString")],
            "has a LineString where an area is needed",
        ),
        (
            [{"type": "Feature", "geometry": None, "properties": {"classification": "benign"}}],
            "unreadable outline in feature 1",
        ),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_and_feature(
    tmp_path: Path, content: Any, said: str
) -> None:
    with pytest.raises(ManifestError, match=r"slide\.geojson") as raised:
        read_regions(stored(tmp_path, content))
    assert said in str(raised.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone\.geojson is not there"):
        read_regions(str(tmp_path / "gone.geojson"))


def test_a_patch_is_what_covers_most_of_it() -> None:
    regions = [
        Region(pattern="benign", outline=shapely.box(0, 0, 10, 6)),
        Region(pattern="gleason_4", outline=shapely.box(0, 6, 10, 10)),
        Region(pattern="gleason_5", outline=shapely.box(20, 0, 24, 10)),
        Region(pattern="gleason_3", outline=shapely.box(40, 0, 45, 10)),
        Region(pattern="gleason_4", outline=shapely.box(45, 0, 50, 10)),
    ]
    x, y = np.array([0, 20, 40, 100]), np.zeros(4, int)
    expected = [
        PATTERNS.index("benign"),
        UNLABELLED,
        PATTERNS.index("gleason_4"),
        UNLABELLED,
    ]  # 60 %; 40 %; a tie; glass
    assert patch_labels(regions, x, y, 10).tolist() == expected
    assert patch_labels(regions, x, y, 10, min_share=0.3).tolist()[1] == PATTERNS.index("gleason_5")


def test_regions_that_overlap_count_their_area_once() -> None:
    twice = [Region(pattern="gleason_3", outline=shapely.box(0, 0, 4, 10))] * 2
    assert patch_labels(twice, np.array([0]), np.array([0]), 10).tolist() == [UNLABELLED]


def test_without_regions_nothing_is_labelled() -> None:
    assert patch_labels([], np.array([0, 5]), np.array([0, 5]), 10).tolist() == [
        UNLABELLED,
        UNLABELLED,
    ]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40))
def test_labels_agree_with_counting_pixels(left: int, top: int, side: int) -> None:
    pixels = np.zeros((100, 100), bool)
    pixels[top : top + side, left : left + side] = True
    x, y = (part.ravel() for part in np.meshgrid(np.arange(0, 100, 10), np.arange(0, 100, 10)))
    covered = np.array([pixels[b : b + 10, a : a + 10].mean() for a, b in zip(x, y, strict=True)])
    labels = patch_labels(
        [Region(pattern="gleason_5", outline=shapely.box(left, top, left + side, top + side))],
        x,
        y,
        10,
    )
    np.testing.assert_array_equal(
        labels, np.where(covered >= 0.5, PATTERNS.index("gleason_5"), UNLABELLED)
    )
