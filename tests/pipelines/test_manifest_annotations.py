"""Annotations that a manifest names: missing, of another kind, of two slides, of any encoding."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import storage
from pipelines.annotations import read_annotations
from pipelines.manifest import Manifest, read_manifest
from pipelines.slides.errors import ManifestError


def read_table(folder: Path, text: str) -> Manifest:
    (folder / "m.csv").write_text(text)
    return read_manifest(str(folder / "m.csv"))


def _check_annotations_of(folder: str) -> None:
    """Six mistakes and two that are right, at a location."""
    features = b'{"type": "FeatureCollection", "features": []}'
    for name, data in {
        "right.geojson": features,
        "mark.geojson": b"\xef\xbb\xbf\n " + features,
        "empty.geojson": b"",
        "table.csv": b"x,y\n1,2\n",
        "c.svs": b"II*\0",
        "folder/x.geojson": features,
    }.items():
        storage.write_bytes(storage.join(folder, *name.split("/")), data)
    annotations = ["right", "mark", "gone", "empty", "c.svs", "table.csv", "folder"]
    lines = [
        f"s{k}.svs,{name if '.' in name or name == 'folder' else f'{name}.geojson'},0.25"
        for k, name in enumerate(annotations)
    ]
    text = "\n".join(["slide,annotation,mpp", *lines, "b.svs,,x", ""])
    storage.write_bytes(storage.join(folder, "m.csv"), text.encode())
    with pytest.raises(ManifestError, match="has 6 mistakes") as raised:
        read_manifest(storage.join(folder, "m.csv"))
    for said in (
        "gone.geojson is not there (annotation in line 4); correct the annotation column",
        "empty.geojson is not GeoJSON (annotation in line 5); export the annotations",
        "c.svs is not GeoJSON (annotation in line 6)",
        "table.csv is not GeoJSON (annotation in line 7)",
        "(annotation in line 8); correct the annotation column",
        "the mpp 'x' in line 9",
    ):
        assert said in str(raised.value)
    assert folder not in str(raised.value)


def test_annotations_that_are_missing_or_of_another_kind_are_mistakes(tmp_path: Path) -> None:
    _check_annotations_of(str(tmp_path))


def test_annotations_on_s3_that_are_missing_are_mistakes(s3_bucket: str) -> None:
    _check_annotations_of(f"{s3_bucket}/lists")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_annotations_in_any_encoding_of_json_are_taken(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.geojson").write_text(" \n[]", encoding=encoding)
    (row,) = read_table(tmp_path, "slide,annotation\na.svs,a.geojson\n")
    assert read_annotations(row.annotation).regions == ()


def test_one_annotation_of_two_slides_is_a_mistake_with_both_lines(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text("[]")
    for again in ("a.geojson", "./a.geojson", f"file://{tmp_path}/a.geojson"):
        with pytest.raises(
            ManifestError,
            match=r"a\.geojson is the annotation of two slides, in lines 2 and 4; give each slide",
        ):
            read_table(tmp_path, f"slide,annotation\na.svs,a.geojson\nb.svs,\nc.svs,{again}\n")
    with pytest.raises(ManifestError, match=r"slide a\.svs is in lines 2 and 3; delete one"):
        read_table(tmp_path, "slide,annotation\na.svs,a.geojson\na.svs,a.geojson\n")


def test_origins_of_annotations(tmp_path: Path) -> None:
    rows = read_table(tmp_path, "slide,annotation_origin\na.svs,slide\nb.svs,bounds\nc.svs,\n")
    assert [row.annotation_origin for row in rows] == ["slide", "bounds", "bounds"]
