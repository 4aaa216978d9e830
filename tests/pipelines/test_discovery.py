"""Folders as they are: odd names, link loops, what systems leave behind, formats of others."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest

from pipelines import storage
from pipelines.discovery import discover, passed_over_summary
from pipelines.manifest import read_manifest
from pipelines.slides.errors import ManifestError
from pipelines.slides.opening import open_slide
from pipelines.storage import StorageError
from tests.pipelines.test_wrong_slides import svs
from tests.support.formats import write_slide


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def _names(folder: Path) -> list[str]:
    return [
        storage.relative_name(storage.as_uri(folder), uri) for uri in discover(str(folder)).slides
    ]


@pytest.mark.parametrize(
    "odd",
    [
        "._a.svs",
        ".hidden.svs",
        ".Trash/b.svs",
        "$RECYCLE.BIN/b.svs",
        "__MACOSX/x/b.svs",
        "Thumbs.db",
        ".DS_Store",
        "b.svs.part",
        "lost+found/b.svs",
        "line\nbreak.txt",
    ],
)
def test_hidden_files_and_those_of_systems_are_ignored(tmp_path: Path, odd: str) -> None:
    _touch(tmp_path, "a.svs", odd)
    assert _names(tmp_path) == ["a.svs"]
    assert discover(str(tmp_path)).passed_over == ()
    assert discover(str(tmp_path / "**" / "*.svs")).slides == discover(str(tmp_path)).slides


def test_a_folder_that_is_hidden_itself_is_looked_through(tmp_path: Path) -> None:
    _touch(tmp_path, ".cache/a.svs")
    assert _names(tmp_path / ".cache") == ["a.svs"]


def test_links_that_go_round_end(tmp_path: Path) -> None:
    _touch(tmp_path, "a.svs", "below/b.svs")
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "below" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "self.svs").symlink_to("self.svs")
    (tmp_path / "gone.svs").symlink_to("nowhere")
    assert _names(tmp_path) == ["a.svs", "below/b.svs"]


def test_a_folder_that_is_linked_in_is_looked_through_once(tmp_path: Path) -> None:
    _touch(tmp_path, "elsewhere/b.svs", "slides/a.svs")
    for name in ("first", "second"):
        (tmp_path / "slides" / name).symlink_to("../elsewhere")
    assert _names(tmp_path / "slides") == ["a.svs", "first/b.svs"]


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Neither a slide nor another file of such a name stops the listing, and the slide opens."""
    path = svs(tmp_path)
    path.rename(tmp_path / os.fsdecode(b"W\xe4rme.svs"))
    (tmp_path / "a.svs").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"notes\xe4.txt")).write_bytes(b"x")
    found = discover(str(tmp_path)).slides
    assert found == (f"file://{tmp_path}/W%E4rme.svs", f"file://{tmp_path}/a.svs")
    with open_slide(found[0]) as slide:
        assert slide.name == "W\N{REPLACEMENT CHARACTER}rme.svs"
    assert [row.case for row in read_manifest(str(tmp_path))][1] == "a.svs"


@pytest.mark.parametrize(
    "name", ["a\nb.svs", "a #3? 100%.svs", 'a "b".svs', "a\tb.svs", "a\x1b[2J.svs", "a%20b.svs"]
)
def test_slides_of_any_name_open_and_are_shown_on_one_line(tmp_path: Path, name: str) -> None:
    svs(tmp_path).rename(tmp_path / name)
    [uri] = discover(str(tmp_path)).slides
    assert uri.isascii()
    with open_slide(uri) as slide:
        assert slide.name.isprintable()
    [row] = read_manifest(str(tmp_path))
    assert row.case.isprintable()


def test_a_space_behind_a_suffix_makes_no_other_format(tmp_path: Path) -> None:
    _touch(tmp_path, "a.svs ")
    assert len(discover(str(tmp_path)).slides) == 1


def test_formats_that_are_not_read_are_reported_by_name_and_count(tmp_path: Path) -> None:
    _touch(tmp_path, "a.svs", *(f"z{k}.zvi" for k in range(5)), "b.vsi", "_b_/stack1/frame.ets")
    manifest = read_manifest(str(tmp_path))
    assert len(manifest) == 1
    reported = passed_over_summary(manifest.passed_over)
    assert "z0.zvi, z1.zvi, z2.zvi and 2 more: Zeiss ZVI can't be read" in reported
    assert "b.vsi: Olympus VSI can't be read; convert it to OME-TIFF or DICOM" in reported
    (tmp_path / "m.csv").write_text("slide\n*\n")
    assert len(read_manifest(str(tmp_path / "m.csv")).passed_over) == 6


def test_a_folder_with_formats_that_are_not_read_alone_says_so(tmp_path: Path) -> None:
    _touch(tmp_path, "b.vsi", "notes.txt")
    with pytest.raises(ManifestError, match=r"has no slide that can be read \(b\.vsi: Olympus VSI"):
        read_manifest(str(tmp_path))
    (tmp_path / "m.csv").write_text("slide\nb*\n")
    with pytest.raises(
        ManifestError, match=r"matches no slide in line 2 that can be read \(b\.vsi"
    ):
        read_manifest(str(tmp_path / "m.csv"))


@pytest.mark.parametrize("name", ["a.btf", "a.ome.btf", "a.tf2", "A.TF8"])
def test_big_tiff_by_any_suffix_is_a_slide(tmp_path: Path, name: str) -> None:
    svs(tmp_path).rename(tmp_path / name)
    [uri] = discover(str(tmp_path)).slides
    with open_slide(uri) as slide:
        assert slide.name == name


def _reasons(folder: Path | str) -> dict[str, str]:
    return {file.name: file.reason for file in discover(str(folder)).passed_over}


def test_packed_slides_and_images_of_folders_are_reported(tmp_path: Path, s3_bucket: str) -> None:
    names = ["a.svs", "b.svs.gz", "c.zip", "d.tar.gz", "e.jp2", "notes.csv.gz", "f.ome.zarr/0/.zz"]
    names += ["f.ome.zarr/0/0/1", "f.ome.zarr/0/0/2", "g.isyntax.zst"]
    _touch(tmp_path, *names)
    for name in names:
        storage.write_bytes(f"{s3_bucket}/s/{name}", b"x")
    packed = "packed files; unpack them if they hold slides"
    for place in (str(tmp_path), f"{s3_bucket}/s"):
        assert _reasons(place) == {
            "b.svs.gz": packed,
            "c.zip": packed,
            "d.tar.gz": packed,
            "g.isyntax.zst": packed,
            "e.jp2": "JPEG 2000 can't be read; convert it to OME-TIFF or DICOM",
            "f.ome.zarr": "Zarr can't be read; convert it to OME-TIFF or DICOM",
        }
        assert len(discover(place).slides) == 1
    for name in names:
        storage.delete(f"{s3_bucket}/s/{name}")
    assert set(_reasons(tmp_path / "*.zarr")) == {"f.ome.zarr"}
    assert _reasons(tmp_path / "*.svs") == {}


def test_dicom_without_suffix_is_found_by_its_content(tmp_path: Path) -> None:
    for name in ("named", "numbered"):
        (tmp_path / name).mkdir()
        series = write_slide("dicom-jpeg", tmp_path / name)
        for k, file in enumerate(sorted(series.iterdir())):
            file.rename(series / (f"IM{k:04d}" if name == "named" else f"1.2.840.{k}"))
        (series / "DICOMDIR").write_bytes(b"x")
    _touch(tmp_path, "other/LICENSE", "other/2024.1")
    slides = discover(str(tmp_path)).slides
    assert len(slides) == 2
    for uri in slides:
        with open_slide(uri) as slide:
            assert slide.vendor == "dicom"
    assert discover(str(tmp_path / "*.svs")).slides == ()


def test_links_to_nowhere_and_pipes_are_reported(tmp_path: Path) -> None:
    _touch(tmp_path, "a.svs")
    for name in ("gone.svs", "older", "notes.txt", ".#a.svs", "below/gone.tiff", "1.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to("/nowhere")
    (tmp_path / "self.svs").symlink_to("self.svs")
    for name in ("pipe.svs", "pipe"):
        os.mkfifo(tmp_path / name)
    reasons = _reasons(tmp_path)
    links = {"gone.svs", "older", "gone.tiff", "1.dcm", "self.svs"}
    assert reasons.keys() == links | {"pipe.svs"}
    assert {reasons[name].partition(";")[0] for name in links} == {"links that lead nowhere"}
    assert reasons["pipe.svs"] == "pipes or devices, not files"
    assert set(_reasons(tmp_path / "*.svs")) == {"gone.svs", "self.svs", "pipe.svs"}


def test_a_path_that_is_missing_is_not_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nowhere is not there; check the path"):
        read_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match="is an empty path"):
        read_manifest("")


def test_one_slide_of_any_suffix_is_a_cohort_of_one(tmp_path: Path) -> None:
    """As caches of data sets name files: whether it is a slide, opening says."""
    for name in ("a.svs", "1.dcm", "blob"):
        _touch(tmp_path, name)
        assert discover(str(tmp_path / name)).slides == (f"file://{tmp_path}/{name}",)


def test_a_folder_that_may_not_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "a.svs", "private/b.svs")
    scan = os.scandir

    def refuse(path: Path) -> object:  # tests may run as root, to whom all folders are open
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = discover(str(tmp_path))
    assert found.slides == (f"file://{tmp_path}/a.svs",)
    assert passed_over_summary(found.passed_over).startswith(
        "private: folders that may not be read"
    )
    with pytest.raises(StorageError, match=r"can't be listed \(Permission denied\)"):
        storage.list_uris(str(tmp_path))
    with pytest.raises(StorageError, match=r"can't be listed \(Permission denied\)"):
        discover(str(tmp_path / "private"))


def test_a_whole_bucket(s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/folder/a.svs", b"x")
    for location in (s3_bucket, f"{s3_bucket}/"):
        assert discover(location).slides == (f"{s3_bucket}/folder/a.svs",)


def test_a_key_that_no_uri_names_is_named(s3_bucket: str) -> None:
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).put_object(
        Bucket=s3_bucket.removeprefix("s3://"), Key="odd//a.svs", Body=b"x"
    )
    with pytest.raises(StorageError, match=r"odd//a\.svs.*rename that object"):
        discover(f"{s3_bucket}/odd")
