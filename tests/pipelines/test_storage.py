"""The same calls on the local disk and on a real HTTP S3 endpoint."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
from obstore.exceptions import GenericError

from pipelines import storage
from pipelines.completion import slide_version
from pipelines.discovery import discover
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.errors import SlideNotFound
from pipelines.slides.opening import open_slide
from pipelines.storage import s3
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


def test_a_store_on_the_local_disk(tmp_path: Path) -> None:
    check_store(str(tmp_path))
    with pytest.raises(storage.StorageError, match="ftp"):
        storage.read_bytes("ftp://host/x")


def test_a_store_on_s3(s3_bucket: str) -> None:
    check_store(f"{s3_bucket}/store")


def test_slide_on_s3_gives_the_same_pixels(s3_bucket: str, generated_slide: Path) -> None:
    uri = f"{s3_bucket}/cohort/a.svs"
    storage.write_file(uri, generated_slide)
    spec = PatchSpec(size=224, mpp=0.5)
    batches = []
    for each in (uri, str(generated_slide)):
        with open_slide(each) as slide:
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
        lambda handle, pieces, start: whole(handle, [piece[:7] for piece in pieces[:1]], start),
    )
    monkeypatch.setattr(
        os, "pread", lambda handle, count, start: part(handle, min(count, 1000), start)
    )
    for starts, ends in (
        ([9000, 10, 1000], [9100, 500, 5000]),
        ([1000, 1003], [5000, 1100]),
    ):  # apart, and overlapping
        found = storage.read_ranges(str(tmp_path / "x.bin"), starts, ends)
        assert [bytes(part) for part in found] == [
            content[a:b] for a, b in zip(starts, ends, strict=True)
        ]
    with pytest.raises(storage.ObjectTruncated, match="ends at byte 10240 where 10300"):
        storage.read_ranges(str(tmp_path / "x.bin"), [10000], [10300])


def test_a_prefix_is_one_slide_with_or_without_its_slash(s3_bucket: str, tmp_path: Path) -> None:
    """A DICOM series in S3 is found, opened, and has a version that changes with its files."""
    series = write_slide("dicom-jpeg", tmp_path)
    prefix = f"{s3_bucket}/series/1.2.840"
    for file in series.iterdir():
        storage.write_file(f"{prefix}/{file.name}", file)
    assert discover(f"{s3_bucket}/series").slides == (prefix,)
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
from pipelines.storage import s3
root = Path(sys.argv[1])
(root / "x.bin").write_bytes(b"0123456789")
{before}
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(20)  # a read that hangs is a failure
assert storage.read_bytes(str(root / "x.bin")) == b"0123456789"
assert bytes(storage.read_ranges(str(root / "x.bin"), [2], [4])[0]) == b"23"
{after}
os._exit(0)
"""
REFUSED = """
try:
    storage.exists("s3://bucket/x.bin")
except storage.StorageError as error:
    assert "spawn or forkserver" in str(error)
else:
    os._exit(1)
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('s3.locate("s3://bucket/x.bin")', REFUSED),
        ("", 's3.locate("s3://bucket/x.bin")'),
    ],
    ids=["S3 used before", "S3 not used before"],
)
def test_a_fork_reads_local_files_and_does_not_wait_for_stores(
    tmp_path: Path, before: str, after: str
) -> None:
    """Threads of a store do not live on in a fork; the fork of a process without has its own."""
    code = FORK.format(before=before, after=after)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_any_name_in_a_store(s3_bucket: str, tmp_path: Path) -> None:
    for root in (s3_bucket, str(tmp_path)):
        uri = storage.join(root, "case #3? 100 % + ä.svs")
        storage.write_bytes(uri, b"0123")
        assert uri in storage.list_uris(root)
        assert storage.read_bytes(uri) == b"0123"


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on the local disk, and one in S3."""
    if request.param == "disk":
        return storage.as_uri(tmp_path / "store")
    return f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"


def test_what_is_at_a_content_address_is_left_untouched(root: str, tmp_path: Path) -> None:
    uri, big = storage.join(root, "a", "x.bin"), storage.join(root, "a", "y.bin")
    source = tmp_path / "source"
    source.write_bytes(b"whole")
    assert storage.write_once(uri, b"whole")
    assert storage.write_file_once(big, source)
    before = storage.versions(root)
    time.sleep(0.02)  # a later time of writing would differ
    assert not storage.write_once(uri, b"whole")
    assert not storage.write_file_once(big, source)
    assert not storage.write_file_once(big, source, consume=True)
    assert storage.versions(root) == before
    assert storage.read_bytes(uri) == storage.read_bytes(big) == b"whole"
    assert not source.exists()


def test_a_file_that_is_consumed_moves_to_its_address(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"whole")
    uri = storage.join(root, "b", "x.bin")
    assert storage.write_file_once(uri, source, consume=True)
    assert not source.exists()
    assert storage.list_uris(storage.join(root, "b")) == [uri]
    assert storage.read_bytes(uri) == b"whole"


def test_a_file_longer_than_one_request_is_written_once(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "SINGLE_PUT", 1000)
    (tmp_path / "long").write_bytes(b"x" * 2000)
    uri = f"{s3_bucket}/long"
    assert storage.write_file_once(uri, tmp_path / "long")
    assert not storage.write_file_once(uri, tmp_path / "long")
    assert storage.read_bytes(uri) == b"x" * 2000


def test_many_writers_of_one_address_leave_one_object(root: str) -> None:
    uri = storage.join(root, "once", "x.bin")
    content = os.urandom(100_000)
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda _: storage.write_once(uri, content), range(16)))
    assert written.count(True) == 1
    assert storage.list_uris(storage.join(root, "once")) == [uri]
    assert storage.read_bytes(uri) == content


def test_a_store_without_conditional_writes_is_asked_first(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rclone's server and older gateways: they refuse the condition, or know no such thing."""
    put, modes = s3.obstore.put, []

    def refuse(*given: object, **named: object) -> object:
        modes.append(named.get("mode"))
        if named.get("mode") == "create":
            raise GenericError("Server returned non-2xx status code: 501 Not Implemented: ")
        return put(*given, **named)

    monkeypatch.setattr(s3.obstore, "put", refuse)
    uri = f"{s3_bucket}/old-gateway"
    assert storage.write_once(uri, b"1")
    assert not storage.write_once(uri, b"2")
    assert storage.read_bytes(uri) == b"1"
    assert modes == ["create", None]


def test_a_disk_without_hard_links_is_asked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    uri = storage.as_uri(tmp_path / "x.bin")
    assert storage.write_once(uri, b"1")
    assert not storage.write_once(uri, b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_a_folder_that_others_empty_can_be_written_to(tmp_path: Path) -> None:
    """Removing the last object of a folder removes the folder, also under a writer."""

    def work(name: str) -> None:
        uri = storage.as_uri(tmp_path / "folder" / name)
        source = tmp_path / f"source-{name}"
        for _ in range(300):
            storage.write_bytes(uri, b"0")
            storage.delete(uri)
            assert storage.write_once(uri, b"0")
            storage.delete(uri)
            source.write_bytes(b"0")
            assert storage.write_file_once(uri, source, consume=True)
            storage.delete(uri)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, ("a", "b", "c")))
    assert list(tmp_path.iterdir()) == []


def test_a_file_moves_into_a_folder_that_is_removed_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, emptied = Path.hardlink_to, []

    def remove_first(path: Path, target: Path) -> None:
        if not emptied:
            emptied.append(path.parent.rmdir())
        link(path, target)

    monkeypatch.setattr(Path, "hardlink_to", remove_first)
    source = tmp_path / "source"
    source.write_bytes(b"0")
    uri = storage.as_uri(tmp_path / "folder" / "x.bin")
    assert storage.write_file_once(uri, source, consume=True)
    assert emptied
    assert storage.read_bytes(uri) == b"0"
    assert not source.exists()


def test_a_file_moves_to_another_disk_as_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path.hardlink_to

    def refuse_between_disks(path: Path, target: Path) -> None:
        if path.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(path, target)

    monkeypatch.setattr(Path, "hardlink_to", refuse_between_disks)
    source, folder = tmp_path / "source", tmp_path / "folder"
    uri = storage.as_uri(folder / "x.bin")
    for content, written in ((b"1", True), (b"2", False)):
        source.write_bytes(content)
        assert storage.write_file_once(uri, source, consume=True) is written
        assert not source.exists()
        assert storage.read_bytes(uri) == b"1"
    assert [path.name for path in folder.iterdir()] == ["x.bin"]


def test_a_name_that_the_client_refuses_is_reported_without_its_text() -> None:
    """Some of its errors have no text at all."""
    for error in (ValueError(), ValueError("https://bucket/?X-Amz-Signature=hunter2")):
        with (
            pytest.raises(storage.InvalidUri, match="rename that object") as raised,
            s3.failures("s3://bucket/x", "read"),
        ):
            raise error
        assert "hunter2" not in str(raised.value)


def test_a_killed_writer_leaves_no_object(tmp_path: Path) -> None:
    """Nor does a listing show what it left; the next writer succeeds."""
    code = """
import os, sys
from pathlib import Path
from pipelines import storage
from pipelines.storage import local
local.write_once(Path(sys.argv[1]), lambda sink: (sink.write(b"half"), sink.flush(), os._exit(9)))
"""
    path = tmp_path / "folder" / "x.bin"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == 9
    assert len(list(path.parent.iterdir())) == 1
    assert storage.list_uris(str(tmp_path)) == []
    assert storage.write_once(storage.as_uri(path), b"whole")
    assert storage.list_uris(str(tmp_path)) == [storage.as_uri(path)]


@pytest.mark.parametrize(
    ("failing", "kind", "text"),
    [
        (errno.ENOSPC, storage.StoreFull, "can't be written (No space left on device); make room"),
        (errno.EDQUOT, storage.StoreFull, "can't be written (Disk quota exceeded); make room"),
        (errno.EROFS, storage.AccessDenied, "(Read-only file system); check the permissions"),
        (errno.EACCES, storage.AccessDenied, "(Permission denied); check the permissions"),
        (errno.EIO, storage.StoreUnavailable, "(Input/output error); check the disk"),
        (errno.EISDIR, storage.StorageError, "(Is a directory); check the path"),
        (errno.ENAMETOOLONG, storage.StorageError, "(File name too long); check the path"),
    ],
)
def test_a_disk_that_fails_is_one_typed_error(
    failing: int,
    kind: type[storage.StorageError],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(failing, "unused", "/somebody/private")

    monkeypatch.setattr(Path, "mkdir", fail)
    uri = storage.as_uri(tmp_path / "folder" / "x.bin")
    (tmp_path / "source").write_bytes(b"0")
    for write in (
        lambda: storage.write_bytes(uri, b"0"),
        lambda: storage.write_file(uri, tmp_path / "source"),
        lambda: storage.write_once(uri, b"0"),
        lambda: storage.write_file_once(uri, tmp_path / "source"),
        lambda: storage.write_file_once(uri, tmp_path / "source", consume=True),
    ):
        with pytest.raises(kind) as raised:
            write()
        assert type(raised.value) is kind
        assert str(raised.value).startswith(f"{uri} can't be written")
        assert text in str(raised.value)
        assert "private" not in "".join(traceback.format_exception(raised.value))


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0")
    with pytest.raises(storage.StorageError, match=r"file/x can't be written \(.*; check the path"):
        storage.write_bytes(storage.as_uri(tmp_path / "file" / "x"), b"0")
    with pytest.raises(storage.ObjectNotFound):
        storage.read_bytes(storage.as_uri(tmp_path / "file" / "x"))
    with pytest.raises(storage.StorageError, match=r"can't be written \(Is a directory\)"):
        storage.write_once(storage.as_uri(tmp_path), b"0")


def test_errors_of_stores_pass_between_processes() -> None:
    for kind in (storage.StorageError, storage.ObjectNotFound, storage.AccessDenied):
        error = kind("s3://bucket/x", "is not there", "check the URI")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == str(error) == "s3://bucket/x is not there; check the URI"
        assert (copy.uri, copy.reason, copy.remedy) == (error.uri, error.reason, error.remedy)
    assert issubclass(storage.ObjectNotFound, FileNotFoundError)
    assert issubclass(storage.AccessDenied, PermissionError)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hunter2@bucket/x",
        "https://bucket.example/x?X-Amz-Signature=hunter2",
        "https://user:hunter2@bucket.example/x",
    ],
)
def test_no_error_holds_credentials(uri: str) -> None:
    for ask in (storage.exists, storage.read_bytes, storage.list_uris, storage.is_folder):
        with pytest.raises(storage.InvalidUri) as raised:
            ask(uri)
        assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_a_bucket_that_is_missing_is_named(s3_bucket: str) -> None:
    for ask in (storage.read_bytes, storage.list_uris, storage.is_folder):
        with pytest.raises(storage.ObjectNotFound, match="s3://no-such-bucket/x names no existing"):
            ask("s3://no-such-bucket/x")
    with pytest.raises(storage.ObjectNotFound, match="names no existing bucket"):
        storage.write_once("s3://no-such-bucket/x", b"0")


def test_an_object_that_shows_a_folder_in_consoles_is_not_listed(s3_bucket: str) -> None:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    bucket = s3_bucket.removeprefix("s3://")
    for key in ("shown/", "shown/below/", "shown/below/x.bin"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    assert storage.list_uris(f"{s3_bucket}/shown") == [f"{s3_bucket}/shown/below/x.bin"]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_path_is_not_the_working_directory(text: str) -> None:
    with pytest.raises(storage.InvalidUri, match="is an empty path; give a path or a URI"):
        storage.as_uri(text)


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    """As caches of data sets make them: the target has neither the slide's name nor its suffix."""
    (tmp_path / "blob").write_bytes(b"0")
    (tmp_path / "a.svs").symlink_to("blob")
    assert storage.as_uri(tmp_path / "a.svs") == f"file://{tmp_path}/a.svs"


def test_home_is_expanded_and_other_tildes_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert storage.as_uri("~/a.svs") == f"file://{tmp_path}/a.svs"
    assert storage.as_uri("~x.svs") == f"file://{tmp_path}/~x.svs"
