"""The same calls on the local disk and on a real HTTP S3 endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from pipelines.completion import slide_version
from pipelines.discovery import find_slides
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.errors import SlideNotFound
from pipelines.slides.opening import open_slide
from tests.support.formats import write_slide


def check_store(root: str) -> None:
    uri = storage.join(root, "org a", "x.bin")
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)
    storage.write_bytes(uri, b"0123456789")
    assert storage.exists(uri)
    assert [bytes(part) for part in storage.read_ranges(uri, [0, 7], [2, 10])] == [b"01", b"789"]
    assert storage.list_uris(root) == [uri]
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"


def test_local(tmp_path: Path) -> None:
    check_store(str(tmp_path))
    with pytest.raises(storage.StorageError, match="ftp"):
        storage.read_bytes("ftp://host/x")


def test_s3(s3_bucket: str) -> None:
    check_store(f"{s3_bucket}/store")


def test_slide_on_s3_gives_the_same_pixels(s3_bucket: str, generated_slide: Path) -> None:
    uri = f"{s3_bucket}/cohort/a.svs"
    storage.write_file(uri, generated_slide)
    spec = PatchSpec(size=224, mpp=0.5)
    batches = []
    for place in (uri, str(generated_slide)):
        with open_slide(place) as slide:
            batches.append(
                decode_patches(fetch_shards(index_slide(slide, spec, organisation="org").shards))
            )
    np.testing.assert_array_equal(batches[0]["patch"], batches[1]["patch"])
    with pytest.raises(SlideNotFound):
        open_slide(f"{s3_bucket}/cohort/b.svs")


def test_reads_that_come_short_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network disk: the system may give fewer bytes than were asked for."""
    content = bytes(range(256)) * 40
    (tmp_path / "x.bin").write_bytes(content)
    whole, part = os.preadv, os.pread
    monkeypatch.setattr(
        os,
        "preadv",
        lambda handle, pieces, at: whole(handle, [piece[:7] for piece in pieces[:1]], at),
    )
    monkeypatch.setattr(os, "pread", lambda handle, count, at: part(handle, min(count, 1000), at))
    for starts, ends in (
        ([9000, 10, 1000], [9100, 500, 5000]),
        ([1000, 1003], [5000, 1100]),
    ):  # apart, and overlapping
        found = storage.read_ranges(str(tmp_path / "x.bin"), starts, ends)
        assert [bytes(at) for at in found] == [
            content[a:b] for a, b in zip(starts, ends, strict=True)
        ]
    with pytest.raises(OSError, match="ends at byte 10240 where 10300"):
        storage.read_ranges(str(tmp_path / "x.bin"), [10000], [10300])


def test_a_prefix_is_one_slide_with_or_without_its_slash(s3_bucket: str, tmp_path: Path) -> None:
    """A DICOM series in S3 is found as such, opened, and has a version that changes with its files."""
    series = write_slide("dicom-jpeg", tmp_path)
    prefix = f"{s3_bucket}/series/1.2.840"
    for file in series.iterdir():
        storage.write_file(f"{prefix}/{file.name}", file)
    assert find_slides(f"{s3_bucket}/series") == [prefix]
    with (
        open_slide(prefix) as slide,
        open_slide(f"{prefix}/") as same,
        open_slide(str(series)) as local,
    ):
        assert slide.vendor == "dicom"
        assert slide.identity == same.identity
        np.testing.assert_array_equal(slide.thumbnail(200), local.thumbnail(200))
    before = slide_version(prefix)
    storage.write_bytes(f"{prefix}/more.dcm", b"x")
    assert slide_version(prefix) != before


FORK = """
import os, signal, sys
from pathlib import Path
from pipelines import storage
root = Path(sys.argv[1])
(root / "x.bin").write_bytes(b"0123456789")
{before}
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(20)  # a read that waits for ever is a failure
assert bytes(storage.read_ranges(str(root / "x.bin"), [2], [4])[0]) == b"23"
{after}
os._exit(0)
"""
REFUSED = """
try:
    storage.exists(str(root / "x.bin"))
except storage.StorageError as error:
    assert "spawn or forkserver" in str(error)
else:
    os._exit(1)
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('storage.exists(str(root / "x.bin"))', REFUSED),
        ("", 'assert storage.exists(str(root / "x.bin"))'),
    ],
    ids=["stores used before", "stores not used before"],
)
def test_a_fork_reads_local_files_and_does_not_wait_for_stores(
    tmp_path: Path, before: str, after: str
) -> None:
    """The threads of a store do not live on in a fork; a fork of a process that used none has its own."""
    code = FORK.format(before=before, after=after)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://bucket/x.svs?versionId=abc", "neither query nor fragment"),
        ("s3://bucket/case #3.svs", "write '?' and '#' of a key as %3F and %23"),
        ("s3://bucket/x.svs#", "neither query nor fragment"),
        ("s3://bucket/a/../x.svs", "'.' or '..' in its path"),
        ("s3://bucket/a//x.svs", "an empty part"),
        ("file:///a/./x.svs", "'.' or '..' in its path"),
    ],
)
def test_uris_that_name_no_object(uri: str, message: str) -> None:
    for ask in (storage.exists, storage.read_bytes, storage.list_uris, storage.versions):
        with pytest.raises(storage.StorageError) as raised:
            ask(uri)
        assert uri in str(raised.value)
        assert message in str(raised.value)


def test_any_name_in_a_store(s3_bucket: str, tmp_path: Path) -> None:
    for root in (s3_bucket, str(tmp_path)):
        uri = storage.join(root, "case #3? 100 % + ä.svs")
        storage.write_bytes(uri, b"0123")
        assert uri in storage.list_uris(root)
        assert storage.read_bytes(uri) == b"0123"
