"""The cache of local copies: bounded, shared by processes, never taken from a slide in use."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.errors import BrokenSlide, SlideNotFound, UnsupportedSlide
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.slides.source import SlideFile
from pipelines.slides.staging import StagingConfig, local_copy
from tests.pipelines.conftest import upload
from tests.support.shared_data import needs_shared_data, shared_data

Find = Callable[[str], Path]


def copies(folder: Path) -> set[str]:
    """Names of the complete copies."""
    return {path.name for path in folder.iterdir() if path.is_dir()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StagingConfig:
    """An empty cache for three small slides; it is that of the environment too."""
    config = StagingConfig(folder=tmp_path / "cache", max_bytes=350_000)
    monkeypatch.setenv("ACINUS_STAGING", str(config.folder))
    monkeypatch.setenv("ACINUS_STAGING_BYTES", str(config.max_bytes))
    return config


@pytest.fixture
def slides(small_slide: Find, s3_bucket: str) -> list[SlideFile]:
    """Five Trestle slides of about 110 kB."""
    found = [SlideFile.find(upload(small_slide("trestle"), s3_bucket)) for _ in range(5)]
    assert 100_000 < found[0].size < 116_000
    return found


def test_local_slides_are_read_where_they_are(small_slide: Find, cache: StagingConfig) -> None:
    file = SlideFile.find(storage.as_uri(small_slide("trestle")))
    copy = local_copy([file], cache)
    assert (copy.paths, copy.staged, cache.folder.exists()) == (
        (small_slide("trestle"),),
        False,
        False,
    )


def test_the_oldest_copy_makes_room(slides: list[SlideFile], cache: StagingConfig) -> None:
    names = []
    for file in slides[:3]:
        copy = local_copy([file], cache)
        assert copy.paths[0].stat().st_size == file.size
        names.append(copy.paths[0].parent.name)
        copy.release()
        time.sleep(0.02)  # times of last use differ
    local_copy([slides[0]], cache).release()  # used again, so that the second is the oldest
    copy = local_copy([slides[3]], cache)
    assert copies(cache.folder) == {names[0], names[2], copy.paths[0].parent.name}
    copy.release()


def test_a_slide_in_use_stays(slides: list[SlideFile], cache: StagingConfig) -> None:
    with open_slide(slides[0].uri) as slide:
        (used,) = copies(cache.folder)
        for file in slides[1:]:
            local_copy([file], cache).release()
        assert used in copies(cache.folder)
        assert len(copies(cache.folder)) == 3
        shown = slide.read_region(Point(100, 100), 0, Size(200, 200))
    with open_slide(slides[4].uri) as slide:
        np.testing.assert_array_equal(slide.read_region(Point(100, 100), 0, Size(200, 200)), shown)
    for file in slides[1:4]:
        local_copy([file], cache).release()
    assert used not in copies(cache.folder)


def test_what_is_larger_than_the_cache_is_refused(
    slides: list[SlideFile], cache: StagingConfig
) -> None:
    small = StagingConfig(folder=cache.folder, max_bytes=slides[0].size - 1)
    with pytest.raises(UnsupportedSlide, match=r"slide\.tif .* ACINUS_STAGING_BYTES") as caught:
        local_copy([slides[0]], small)
    assert f"{slides[0].size:,} bytes" in str(caught.value)
    assert copies(cache.folder) == set()


def test_names_of_copies_hold_no_name_of_a_slide(
    slides: list[SlideFile], cache: StagingConfig
) -> None:
    local_copy([slides[0]], cache).release()
    assert not any("slide" in path.name for path in cache.folder.rglob("*"))
    assert cache.folder.stat().st_mode & 0o077 == 0


def test_an_object_that_changes_or_goes_while_it_is_copied(
    slides: list[SlideFile], cache: StagingConfig
) -> None:
    with pytest.raises(BrokenSlide, match="changed while it was copied"):
        local_copy([replace(slides[0], size=slides[0].size + 1)], cache)
    gone = replace(slides[0], uri=slides[0].uri.replace("slide.tif", "gone.tif"), name="gone.tif")
    with pytest.raises(SlideNotFound, match=r"gone\.tif"):
        local_copy([gone], cache)
    assert copies(cache.folder) == set(), "parts stay behind"


def test_a_new_version_is_copied_anew(
    small_slide: Find, slides: list[SlideFile], cache: StagingConfig
) -> None:
    with open_slide(slides[0].uri) as slide:
        first = slide.identity
    storage.write_bytes(slides[0].uri, small_slide("trestle").read_bytes() + b"\0")
    with open_slide(slides[0].uri) as slide:
        assert slide.identity != first
    assert len(copies(cache.folder)) == 2


COPY = """
import sys, time
from pipelines import storage
from pipelines.slides import staging
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
download = staging._download
def slow(*given):
    time.sleep(1.5)  # so that both are at it
    download(*given)
staging._download = slow
while time.time() < float(sys.argv[2]):
    pass
with storage.metered() as meter, open_slide(sys.argv[1]) as slide:
    pixels = slide.read_region(Point(0, 0), 0, Size(100, 100))
print(meter.fetched, int(pixels.sum()))
"""


def test_two_processes_download_once(slides: list[SlideFile], cache: StagingConfig) -> None:
    command = [sys.executable, "-c", COPY, slides[0].uri, str(time.time() + 4)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0].split() for process in started]
    fetched, shown = zip(*printed, strict=True)
    heads = 2 * slides[0].size  # each looks at the head, which for a slide so small is all of it
    assert sum(map(int, fetched)) == heads + slides[0].size
    assert shown[0] == shown[1]


@pytest.mark.parametrize("name", ["trestle", "mirax"])
def test_staged_patches_are_local_ones(
    name: str, small_slide: Find, s3_bucket: str, cache: StagingConfig
) -> None:
    """Pixels are decoded in the read task, which may stage the slide anew on another machine."""
    spec = PatchSpec(size=64, mpp=0.5, min_tissue=0.1)
    batches = []
    for uri in (str(small_slide(name)), upload(small_slide(name), s3_bucket)):
        with open_slide(uri) as slide:
            assert slide.staged == uri.startswith("s3")
            shards = index_slide(slide, spec, organisation="org").shards
        batches.append(decode_patches(fetch_shards(shards)))
    np.testing.assert_array_equal(batches[0]["patch"], batches[1]["patch"])


def test_a_mirax_whose_data_changes_is_another_slide(
    small_slide: Find, s3_bucket: str, tmp_path: Path
) -> None:
    """Its index file stays the same: a copy in the cache would go on showing what is gone."""
    shutil.copytree(small_slide("mirax").parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / small_slide("mirax").name
    uri = upload(path, s3_bucket)
    before = [SlideFile.find(each).version for each in (storage.as_uri(path), uri)]
    assert [SlideFile.find(each).version for each in (storage.as_uri(path), uri)] == before
    data = path.with_suffix("") / "Data0000.dat"
    data.write_bytes(data.read_bytes() + b"more")
    storage.write_file(f"{uri.removesuffix('.mrxs')}/Data0000.dat", data)
    after = [SlideFile.find(each).version for each in (storage.as_uri(path), uri)]
    assert not set(before) & set(after)


@needs_shared_data
def test_real_ndpi_in_s3(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_data()
    assert folder is not None
    path = folder / "wsi" / "hamamatsu_test3-DAPI-2-387.ndpi"
    uri = f"{s3_bucket}/real.ndpi"
    storage.write_file(uri, path)
    monkeypatch.setenv("ACINUS_STAGING", str(tmp_path))
    with open_slide(uri) as remote, open_slide(str(path)) as local:
        assert (remote.staged, local.staged, remote.levels == local.levels) == (True, False, True)
        ours, theirs = (
            slide.read_region(Point(1000, 1000), 0, Size(500, 500)) for slide in (remote, local)
        )
        np.testing.assert_array_equal(ours, theirs)


def test_copies_of_dead_processes_make_room_and_used_ones_do_not(
    slides: list[SlideFile], cache: StagingConfig
) -> None:
    cache.folder.mkdir()
    dead = cache.folder / f"{'0' * 32}.part-300000-x"
    dead.mkdir()
    (dead / "0000.tif").write_bytes(bytes(1000))
    used = [local_copy([file], cache) for file in slides[:3]]
    assert not dead.exists()
    with pytest.raises(UnsupportedSlide, match=r"slides in use have 3.*ACINUS_STAGING_BYTES"):
        local_copy([slides[3]], cache)
    assert all(path.exists() for copy in used for path in copy.paths)
    used[1].release()
    local_copy([slides[3]], cache).release()
    assert not used[1].paths[0].exists()
    for copy in used:
        copy.release()


def test_a_cache_that_cannot_be_written_is_named(slides: list[SlideFile], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnsupportedSlide, match=r"slide\.tif can't be copied .* ACINUS_STAGING"):
        local_copy([slides[0]], StagingConfig(folder=tmp_path / "file" / "below", max_bytes=10**9))


@pytest.mark.parametrize("text", ["50GB", "-1", "0", "1e9", "many"])
def test_a_size_of_the_cache_that_is_not_a_number_is_named(
    text: str, slides: list[SlideFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACINUS_STAGING_BYTES", text)
    with pytest.raises(UnsupportedSlide, match=f"ACINUS_STAGING_BYTES is '{text}'"):
        open_slide(slides[0].uri)


def test_a_damaged_slide_leaves_no_lock(
    s3_bucket: str, slides: list[SlideFile], cache: StagingConfig
) -> None:
    """So that its copy can make room."""
    uri = f"{s3_bucket}/damaged.mrxs"
    storage.write_bytes(uri, bytes(300_000))
    for _ in range(2):
        with pytest.raises(UnsupportedSlide, match="damaged"):
            open_slide(uri)
    (damaged,) = copies(cache.folder)
    local_copy([slides[0]], cache).release()
    assert damaged not in copies(cache.folder)
