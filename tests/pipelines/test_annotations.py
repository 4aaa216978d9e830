"""Regions as QuPath writes them, and the labels they give to patches."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pipelines import storage
from pipelines.annotations import (
    PATTERNS,
    UNLABELLED,
    AnnotationFrame,
    Region,
    patch_labels,
    read_annotations,
    share_with_patches,
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
    return storage.as_uri(path)


def _regions(path: str) -> list[Region]:
    return list(read_annotations(storage.as_uri(path)).regions)


def test_regions_survive_writing_and_reading(tmp_path: Path) -> None:
    ring = shapely.box(0, 0, 100, 100).difference(shapely.box(40, 40, 60, 60))
    regions = [
        Region(pattern="gleason_4", outline=ring),
        Region(pattern="benign", outline=shapely.box(200, 0, 300, 50)),
    ]
    write_regions(storage.as_uri(tmp_path / "a.geojson"), regions)
    back = _regions(str(tmp_path / "a.geojson"))
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
    [region] = _regions(stored(tmp_path, wrap(feature(name, square(0, 0, 10)))))
    assert region.pattern == "gleason_3"
    assert region.outline.area == 100


def test_ignored_are_starred_classes_and_objects_without_a_class(tmp_path: Path) -> None:
    features = [
        feature("Region*", square(0, 0, 9)),
        feature(None, square(0, 0, 9)),
        feature("Ignore*", square(0, 0, 9)),
    ]
    assert _regions(stored(tmp_path, features)) == []


def test_a_line_that_crosses_itself_keeps_its_area(tmp_path: Path) -> None:
    bow_tie = [[(0, 0), (10, 10), (10, 0), (0, 10), (0, 0)]]
    [region] = _regions(stored(tmp_path, [feature("gleason_5", bow_tie)]))
    assert region.outline.is_valid
    assert region.outline.area == pytest.approx(50)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not GeoJSON"),
        ({"type": "Polygon"}, "holds no GeoJSON features"),
        ([feature("Gleson 3", square(0, 0, 1))], "unknown class 'Gleson 3' in feature 1"),
        ([feature("gleason_3", [[0, 0]], "Point")], "feature 1"),
        (
            [feature("gleason_3", [(0, 0), (1, 1)], "LineString")],
            "has a LineString where an area is needed",
        ),
        (
            [{"type": "Feature", "properties": {"classification": "benign"}}],
            "unreadable outline in feature 1",
        ),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_and_feature(
    tmp_path: Path, content: Any, said: str
) -> None:
    with pytest.raises(ManifestError, match=r"slide\.geojson") as raised:
        _regions(stored(tmp_path, content))
    assert said in str(raised.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone\.geojson is not there"):
        _regions(str(tmp_path / "gone.geojson"))


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


@pytest.mark.parametrize(
    "classification",
    [
        {"names": ["gleason_4", "cribriform"], "color": [200, 0, 0]},
        {"names": ["Tumor", "Gleason 4"]},
        {"names": ["gleason_4"]},
        {"name": "gleason_4: cribriform", "colorRGB": -1},
        {"name": "Gleason 4"},
        ["gleason_4", "cribriform"],
        "gleason_4",
    ],
    ids=str,
)
def test_a_derived_class_is_the_pattern_among_its_parts(
    tmp_path: Path, classification: Any
) -> None:
    one = feature(None, square(0, 0, 10))
    one["properties"]["classification"] = classification
    assert [region.pattern for region in _regions(stored(tmp_path, [one]))] == ["gleason_4"]


@pytest.mark.parametrize(
    ("classification", "said"),
    [
        ({"names": ["Tumor", "cribriform"]}, "the unknown class 'Tumor: cribriform'"),
        ({"names": ["gleason_3", "gleason_4"]}, "'gleason_3: gleason_4' of several patterns"),
        ({"name": "Gleson 3"}, "the unknown class 'Gleson 3'"),
        ({"name": 5}, "the unknown class '5'"),
    ],
)
def test_a_class_that_is_not_one_pattern_is_refused(
    tmp_path: Path, classification: Any, said: str
) -> None:
    one = {"id": "8b3c", **feature(None, square(0, 0, 10))}
    one["properties"]["classification"] = classification
    with pytest.raises(ManifestError, match=r"in feature 1 \(id 8b3c\)") as raised:
        _regions(stored(tmp_path, [one]))
    assert said in str(raised.value)


UNUSED: list[tuple[dict[str, Any], str]] = [
    (feature("Region*", square(0, 0, 9)), "has a class that ends in *"),
    (feature("Tumor: Ignore*", square(0, 0, 9)), "has a class that ends in *"),
    (feature(None, square(0, 0, 9)), "has no class"),
    ({**feature(None, square(0, 0, 9)), "properties": None}, "has no class"),
    (feature("gleason_3", []), "has no area"),
    (feature("gleason_3", [[(0, 0), (1, 0), (1, 0), (0, 0)]]), "has no area"),
    (feature("gleason_3", [], "MultiPolygon"), "has no area"),
    ({**feature("gleason_3", []), "geometry": None}, "has no area"),
]
for kind, text in {
    "detection": "is a detection",
    "cell": "is a cell",
    "tile": "is a tile",
    "tma core": "is a TMA core",
    "PathCellObject": "is a cell",
    "PathDetectionObject": "is a detection",
    "TMACoreObject": "is a TMA core",
}.items():
    computed = feature("Tumor", square(0, 0, 9))
    computed["properties"]["objectType"] = kind
    UNUSED.append((computed, f"{text}, not an annotation"))
for classification in (None, {}, {"name": None}, {"names": []}, {"name": ""}, [], ""):
    unclassified = feature(None, square(0, 0, 9))
    unclassified["properties"]["classification"] = classification
    UNUSED.append((unclassified, "has no class"))


@pytest.mark.parametrize(("one", "reason"), UNUSED, ids=[text for _, text in UNUSED])
def test_a_feature_that_labels_nothing_is_reported_with_its_id(
    tmp_path: Path, one: dict[str, Any], reason: str
) -> None:
    used = {"id": "used", **feature("benign", square(0, 0, 9))}
    found = read_annotations(stored(tmp_path, [used, {"id": "odd-one", **one}]))
    assert [region.feature for region in found.regions] == ["feature 1 (id used)"]
    [unused] = found.unused
    assert (unused.number, unused.feature) == (2, "feature 2 (id odd-one)")
    assert found.unused_by_reason == {unused.reason: [2]}
    assert unused.reason.startswith(reason)
    assert unused.reason in found.unused_summary


def test_a_name_without_a_class_is_reported_and_not_repeated(tmp_path: Path) -> None:
    """Names are given next to classes in QuPath, and taken for them."""
    named = feature(None, square(0, 0, 9))
    named["properties"]["name"] = "DOE JOHN, left apex"
    ignored = feature("DOE JOHN*", square(0, 0, 9))
    found = read_annotations(stored(tmp_path, [named, ignored]))
    assert found.unused_summary == (
        "feature 1 (has no class, only a name); "
        "feature 2 (has a class that ends in *, which is ignored)"
    )


def test_a_summary_counts_what_it_does_not_list(tmp_path: Path) -> None:
    cells = [feature("Tumor", square(k, 0, 1)) for k in range(10)]
    for cell in cells:
        cell["properties"]["objectType"] = "cell"
    found = read_annotations(stored(tmp_path, [*cells, feature(None, square(0, 0, 1))]))
    assert found.unused_summary == (
        "feature 1, feature 2, feature 3 and 7 more (is a cell, not an annotation); "
        "feature 11 (has no class)"
    )


@pytest.mark.parametrize(
    ("kind", "coordinates", "area"),
    [
        ("MultiPolygon", [square(0, 0, 10), square(5, 5, 10)], 175),
        ("MultiPolygon", [square(0, 0, 10), square(2, 2, 5)], 100),
        ("MultiPolygon", [square(0, 0, 10), square(20, 0, 10)], 200),
        ("Polygon", [*square(0, 0, 10), *square(2, 2, 5)], 75),
        ("Polygon", [[(0, 0), (10, 0), (10, 10)]], 50),
        ("Polygon", [[(x, y, 7) for x, y in square(0, 0, 10)[0]]], 100),
    ],
    ids=["parts that overlap", "a part within another", "two parts", "a hole", "not closed", "3D"],
)
def test_outlines_keep_their_area(tmp_path: Path, kind: str, coordinates: Any, area: float) -> None:
    [region] = _regions(stored(tmp_path, [feature("gleason_3", coordinates, kind)]))
    assert region.outline.area == pytest.approx(area)


def test_collections_of_collections_keep_all_their_areas(tmp_path: Path) -> None:
    polygons = [{"type": "Polygon", "coordinates": square(x, 0, 10)} for x in (0, 100, 200)]
    inner = {"type": "GeometryCollection", "geometries": polygons[1:]}
    line = {"type": "LineString", "coordinates": [(0, 0), (500, 0)]}
    one = feature("gleason_3", [])
    one["geometry"] = {"type": "GeometryCollection", "geometries": [polygons[0], inner, line]}
    [region] = _regions(stored(tmp_path, [one]))
    assert region.outline.area == pytest.approx(300)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_coordinate_that_is_not_a_number_is_refused(tmp_path: Path, number: str) -> None:
    text = json.dumps(feature("gleason_3", square(0, 0, 10))).replace("10.0", number)
    with pytest.raises(ManifestError, match="coordinate that is not a number in feature 1"):
        _regions(stored(tmp_path, text.replace("10", number)))


def test_a_coordinate_beyond_every_number_is_refused(tmp_path: Path) -> None:
    text = json.dumps(feature("gleason_3", square(0, 0, 10))).replace("10", str(10**400))
    with pytest.raises(ManifestError, match="coordinate that is too large in feature 1"):
        _regions(stored(tmp_path, text))


def test_measurements_may_be_nan(tmp_path: Path) -> None:
    """QuPath writes NaN for what it could not measure."""
    one = feature("gleason_3", square(0, 0, 10))
    one["properties"]["measurements"] = {"Circularity": float("nan")}
    assert len(_regions(stored(tmp_path, [one]))) == 1


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\ufeff{"], ids=["empty", "deep", "BOM"])
def test_what_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ManifestError, match=r"slide\.geojson is not GeoJSON"):
        _regions(stored(tmp_path, text))


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(feature("benign", square(0, 0, 9))), encoding="utf-8-sig")
    assert len(_regions(str(path))) == 1


def test_a_folder_or_a_file_of_somebody_else_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "Jane Doe.geojson").mkdir()
    with pytest.raises(ManifestError, match=r"can't be read \(Is a directory\)") as raised:
        _regions(str(tmp_path / "Jane Doe.geojson"))
    assert str(tmp_path) not in "".join(traceback.format_exception(raised.value))


CROPPED = {"x": 1000, "y": 500, "width": 4000, "height": 2000}


def test_annotations_of_a_cropped_slide_are_relative_to_the_scanned_area(tmp_path: Path) -> None:
    path = stored(tmp_path, [feature("gleason_3", square(100, 200, 300))])
    expected = {"bounds": (1100, 700, 1400, 1000), "slide": (100, 200, 400, 500)}
    for origin, corners in expected.items():
        [region] = read_annotations(path, AnnotationFrame(origin=origin, **CROPPED)).regions
        assert region.outline.bounds == corners


def test_regions_beyond_the_scanned_area_are_not_relative_to_it(tmp_path: Path) -> None:
    path = stored(tmp_path, [feature("gleason_3", square(3800, 200, 300))])
    with pytest.raises(ManifestError, match="set annotation_origin to 'slide'"):
        read_annotations(path, AnnotationFrame(**CROPPED))
    assert read_annotations(path, AnnotationFrame(origin="slide", **CROPPED)).regions
    assert read_annotations(path, AnnotationFrame(width=4000, height=2000)).regions


def test_the_share_of_region_area_with_patches() -> None:
    x, y = np.array([0, 10, 0, 10]), np.array([0, 0, 10, 10])
    for left, expected in ((0, 1.0), (15, 0.5), (100, 0.0)):
        region = Region(pattern="gleason_5", outline=shapely.box(left, 0, left + 10, 10))
        assert share_with_patches([region], x, y, 10) == pytest.approx(expected)
        assert share_with_patches([region, region], x, y, 10) == pytest.approx(expected)
    assert share_with_patches([], x, y, 10) == 0


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
