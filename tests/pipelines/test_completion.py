"""Resuming: finished slides are kept; missing, damaged or changed ones are prepared again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipelines import completion, storage
from pipelines.cohort import CohortError, load_cohort
from pipelines.cohort_shards import load_shards
from pipelines.completion import completion_key, slide_version
from pipelines.grid import PatchSpec
from pipelines.manifest import ManifestRow, read_manifest
from pipelines.preparation import SlideOutcome
from pipelines.prepare import OutputError, PrepareConfig, prepare
from pipelines.prepare_slide import prepare_slide
from pipelines.slides.errors import SlideNotFound
from pipelines.synthetic.tissue import generate_tile
from tests.support.small_cohort import BAD, small_cohort

Result = tuple[int, SlideOutcome]


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    """Two good slides."""
    manifest = small_cohort(tmp_path / "slides", 2, bad=0)
    return PrepareConfig(manifest=str(manifest), out=str(tmp_path / "out"), resume=True)


def _kept(config: PrepareConfig) -> list[bool | None]:
    """Of each slide: kept from before, done now, or None if it failed. In this process."""
    outcomes = [prepare_slide(row, config) for row in read_manifest(config.manifest)]
    return [outcome.kept if outcome.row else None for outcome in outcomes]


def _only(folder: str, pattern: str) -> list[Path]:
    return sorted(Path(folder).rglob(pattern))


def test_finished_slides_are_kept(config: PrepareConfig) -> None:
    assert _kept(config) == [False, False]
    assert _kept(config) == [True, True]
    assert _kept(replace(config, resume=False)) == [False, False]


@pytest.mark.parametrize(
    "change",
    [{"spec": PatchSpec(overlap=32)}, {"mpp": 0.4}, {"shard_side": 1}, {"organisation": "other"}],
    ids=["spec", "mpp", "shards", "organisation"],
)
def test_another_spec_is_done_again(config: PrepareConfig, change: dict[str, object]) -> None:
    _kept(config)
    assert _kept(replace(config, **change)) == [False, False]


def test_a_slide_that_changed_is_done_again(config: PrepareConfig) -> None:
    _kept(config)
    slide = Path(config.manifest).parent / "slide-0001.svs"
    os.utime(slide, (1_800_000_000, 1_800_000_000))
    assert _kept(config) == [True, False]
    slide.unlink()
    assert _kept(config) == [True, None]


def test_an_mpp_in_the_manifest_counts_and_a_label_does_not(config: PrepareConfig) -> None:
    _kept(config)
    manifest = Path(config.manifest)
    manifest.write_text("slide,mpp,case,label\nslide-0001.svs,,q,5+4\nslide-0000.svs,0.505,q,3+3\n")
    outcomes = [prepare_slide(row, config) for row in read_manifest(config.manifest)]
    assert [one.kept for one in outcomes] == [True, False]
    assert [one.row and one.row.label for one in outcomes] == ["5+4", "3+3"]


@pytest.mark.parametrize(
    "pattern", ["shards.parquet", "quality.json", "overview.png", "prepared/*.json"]
)
def test_a_slide_with_a_missing_file_is_prepared_again(config: PrepareConfig, pattern: str) -> None:
    _kept(config)
    gone = _only(config.out, pattern)[0]
    content = gone.read_bytes()
    gone.unlink()
    assert sorted(_kept(config), key=bool) == [False, True]
    assert gone.read_bytes() == content
    assert _kept(config) == [True, True]


@pytest.mark.parametrize("pattern", ["shards.parquet", "prepared/*.json"])
@pytest.mark.parametrize("damage", [b"", b"[1"])
def test_a_slide_with_a_damaged_file_is_prepared_again(
    config: PrepareConfig, pattern: str, damage: bytes
) -> None:
    _kept(config)
    _only(config.out, pattern)[0].write_bytes(damage)
    assert sorted(_kept(config), key=bool) == [False, True]


def test_another_index_version_does_it_again(
    config: PrepareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _kept(config)
    monkeypatch.setattr(completion, "INDEX_VERSION", completion.INDEX_VERSION + 1)
    assert _kept(config) == [False, False]


def test_records_hold_no_name_of_a_slide(config: PrepareConfig) -> None:
    _kept(config)
    text = "".join(
        f"{path.relative_to(config.out)} {path.read_text()}"
        for path in _only(config.out, "prepared/*.json")
    )
    assert "slide-000" not in text
    assert "case-000" not in text


def test_failures_are_reported_and_tried_again(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    config = PrepareConfig(
        manifest=str(small_cohort(slides, 10, bad=5)), out=str(tmp_path / "out"), resume=True
    )
    report = prepare(config)
    assert [one.line for one in report.failed] == [3, 5, 7, 9, 11]
    assert sum(report.errors.values()) == len(BAD) == 5
    assert report.errors["MissingResolution"] == report.errors["SlideNotFound"] == 1
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["slides"] == {"total": 10, "prepared": 5, "failed": 5, "kept": 0, "staged": 0}
    assert written["errors"] == report.errors
    assert written["splits"] == {"test": 1, "train": 4}
    sound = small_cohort(tmp_path / "sound", 10, bad=0).parent
    for time, name in enumerate(
        ("slide-0001.svs", "slide-0003.svs", "slide-0005.svs", "slide-0007.svs")
    ):
        (slides / name).write_bytes((sound / name).read_bytes())
        os.utime(slides / name, (time, time))
    again = prepare(replace(config, mpp=0.5))  # for the one without
    assert not again.failed
    assert len(load_cohort(config.out)) == 10
    again = prepare(replace(config, mpp=0.5))
    assert again.kept == 10


def test_remarks_are_reported_and_kept(tmp_path: Path) -> None:
    """Which of two pictures in a file is read is said by a run, and by one that resumes it."""
    pixels = np.full((280, 520, 3), 243, np.uint8)
    pixels[20:260, 20:500] = generate_tile("gleason_4", np.random.default_rng(0), side=480)[:240]
    with tifffile.TiffWriter(tmp_path / "two.tif") as tiff:
        for picture in (pixels, pixels[:, :300]):
            tiff.write(
                picture, tile=(128, 128), compression="jpeg", photometric="rgb", metadata=None
            )
    config = PrepareConfig(
        manifest=str(tmp_path / "two.tif"), out=str(tmp_path / "out"), mpp=0.5, resume=True
    )
    (tmp_path / "m.csv").write_text("slide\ntwo.tif\n")
    config = replace(config, manifest=str(tmp_path / "m.csv"))
    for kept in (0, 1):
        report = prepare(config)
        assert report.kept == kept, report.failed
        [(slide, [remark])] = report.remarks
        assert slide == "two.tif"
        assert "300 x 280" in remark
        written = json.loads((tmp_path / "out" / "report.json").read_text())
        assert written["remarks"] == [{"slide": "two.tif", "remarks": [remark]}]


def test_of_two_copies_the_first_counts(config: PrepareConfig) -> None:
    first, copy = sorted(Path(config.manifest).parent.glob("*.svs"))
    copy.write_bytes(first.read_bytes())
    os.utime(copy, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    for _ in range(2):
        report = prepare(config)
        assert [one.slide for one in report.prepared] == [first.name]
        assert f"is the same slide as {first.name} in line 2" in report.failed[0].error
        assert set(load_shards(config.out)["slide_uri"].to_pylist()) == {storage.as_uri(first)}
        prepare_slide(read_manifest(config.manifest)[1], config)  # as if the copy had come last
        with pytest.raises(CohortError, match="half of another preparation"):
            load_shards(config.out)


def test_a_first_copy_that_fails_the_second_time_is_reported(config: PrepareConfig) -> None:
    """Its shard table is that of the refused copy, so the cohort must not have it."""
    first, copy = sorted(Path(config.manifest).parent.glob("*.svs"))
    copy.write_bytes(first.read_bytes())
    os.utime(copy, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))

    def run(rows: Sequence[ManifestRow], config: PrepareConfig) -> Generator[Result]:
        if len(rows) == 1:
            first.unlink()
        for k, row in enumerate(rows):  # in the order of the manifest: the copy comes last
            yield k, prepare_slide(row, config)

    report = prepare(config, run_slides=run)
    assert [one.kind for one in report.failed] == ["SlideNotFound", "ManifestError"]
    assert report.prepared == []
    with pytest.raises(CohortError, match="holds no slide"):
        load_cohort(config.out)


def test_a_run_that_ends_early_closes_what_prepares_its_slides(config: PrepareConfig) -> None:
    runs, closed = [], []

    def run(rows: Sequence[ManifestRow], config: PrepareConfig) -> Generator[Result]:
        def attempt() -> Generator[Result]:
            try:
                for k, row in enumerate(rows):
                    yield k, prepare_slide(row, config)
            finally:
                closed.append(len(rows))

        runs.append(attempt())  # held, as a debugger or a traceback would
        return runs[-1]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, run_slides=run, on_slide=stop)
    assert closed == [2]


def test_a_copy_made_later_is_the_same_slide_too(config: PrepareConfig) -> None:
    """In another split it would let a model be tested on what it was trained on."""
    folder = Path(config.manifest).parent
    (folder / "copy.svs").write_bytes((folder / "slide-0001.svs").read_bytes())
    with Path(config.manifest).open("a") as stream:
        stream.write("copy.svs,another,validation,3+4\n")
    report = prepare(config)
    assert len(_only(config.out, "shards.parquet")) == 2, "of the refused copy, nothing stays"
    assert len(_only(config.out, "overview.png")) == len(_only(config.out, "quality.json")) == 2
    assert [one.slide for one in report.prepared] == ["slide-0000.svs", "slide-0001.svs"]
    assert "copy.svs is the same slide as slide-0001.svs in line 3" in report.failed[0].error
    assert len(load_shards(config.out)) == 2


def test_a_run_killed_over_another_ones_cohort_is_noticed(config: PrepareConfig) -> None:
    """Its shard tables replace those of the cohort, but have another mpp."""
    prepare(config)
    prepare_slide(replace(read_manifest(config.manifest)[0], mpp=0.495), config)
    with pytest.raises(CohortError, match=r"half of another preparation.*--resume"):
        load_shards(config.out)
    prepare(replace(config, resume=True))
    assert len(load_shards(config.out)) == 2


def test_a_vms_slide_is_all_files_that_bear_its_name(tmp_path: Path) -> None:
    for name in ("a.vms", "a_map2.jpg", "b.vms"):
        (tmp_path / name).write_bytes(b"x" * 200)
    before = {name: slide_version(storage.as_uri(tmp_path / name)) for name in ("a.vms", "b.vms")}
    (tmp_path / "a_map2.jpg").write_bytes(b"y" * 300)
    assert slide_version(storage.as_uri(tmp_path / "a.vms")) != before["a.vms"]
    assert slide_version(storage.as_uri(tmp_path / "b.vms")) == before["b.vms"]


def test_one_file_of_a_series_stands_for_all(
    small_slide: Callable[[str], Path], tmp_path: Path
) -> None:
    for path in sorted(small_slide("dicom-jpeg").glob("*.dcm")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    named, *others = sorted(tmp_path.glob("*.dcm"))
    before = slide_version(storage.as_uri(named))
    os.utime(others[0], (1_800_000_000, 1_800_000_000))
    assert slide_version(storage.as_uri(named)) != before


def test_a_manifest_next_to_a_series_is_not_part_of_it(
    small_slide: Callable[[str], Path], tmp_path: Path
) -> None:
    """Another label would prepare the slide again."""
    for path in sorted(small_slide("dicom-jpeg").glob("*.dcm")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = slide_version(storage.as_uri(tmp_path))
    (tmp_path / "manifest.csv").write_text("slide,label\n.,3+4\n")
    (tmp_path / "regions.GeoJSON").write_text("{}")
    assert slide_version(storage.as_uri(tmp_path)) == before


def test_all_failed_is_not_an_empty_cohort(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("slide\ngone.svs\n")
    prepare(PrepareConfig(manifest=str(tmp_path / "m.csv"), out=str(tmp_path / "out")))
    with pytest.raises(CohortError, match=r"all failed to be prepared; .*see .*report\.json"):
        load_cohort(str(tmp_path / "out"))


def test_a_store_that_cannot_be_written_ends_the_run(config: PrepareConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(OutputError, match=r"file/out can't be written .*make room"):
        prepare(replace(config, out=str(tmp_path / "file" / "out")))


def test_a_series_changes_with_each_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").write_bytes(b"one")
    versions = {slide_version(storage.as_uri(tmp_path))}
    (tmp_path / "2.dcm").write_bytes(b"two")
    versions.add(slide_version(storage.as_uri(tmp_path)))
    os.utime(tmp_path / "2.dcm", (1, 1))
    versions.add(slide_version(storage.as_uri(tmp_path)))
    assert len(versions) == 3
    with pytest.raises(SlideNotFound):
        slide_version(storage.as_uri(tmp_path / "gone"))


def test_keys_do_not_run_together() -> None:
    assert completion_key("a", "bc") != completion_key("ab", "c")
    assert completion_key("a", None) == completion_key("a", None)


def test_on_s3_an_etag_is_the_version(s3_bucket: str, config: PrepareConfig) -> None:
    slides = Path(config.manifest).parent
    for path in sorted(slides.iterdir()):
        storage.write_bytes(storage.join(s3_bucket, "slides", path.name), path.read_bytes())
    storage.write_bytes(
        f"{s3_bucket}/slides/slide-0001.svs", (slides / "slide-0001.svs").read_bytes() + b"\0"
    )
    remote = replace(config, manifest=f"{s3_bucket}/slides/manifest.csv", out=f"{s3_bucket}/out")
    assert _kept(remote) == [False, False]
    assert _kept(remote) == [True, True]
    storage.write_bytes(
        f"{s3_bucket}/slides/slide-0001.svs", (slides / "slide-0001.svs").read_bytes() + b"\0\0"
    )
    assert _kept(remote) == [True, False]


def test_a_cohort_without_splits_says_how_to_assign_them(
    config: PrepareConfig,
) -> None:
    manifest = Path(config.manifest)
    manifest.write_text("slide\nslide-0000.svs\n")
    prepare(config)
    with pytest.raises(CohortError, match="its slides have no split; assign some"):
        load_cohort(config.out, split="train")
