"""What is a URI, and what is a local name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import storage


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3:///key",
        "s3:",
        "s3:/bucket/key",
        "S3:/bucket/key",
        "s3:bucket/key",
        "file:/tmp/x",
        "file:x",
        "file://",
        "https:/host/x",
        "C:/slides",
    ],
)
def test_a_uri_that_lacks_a_slash_or_its_bucket_is_not_a_local_folder(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for ask in (
        storage.as_uri,
        lambda given: storage.join(given, "a", "b"),
        lambda given: storage.resolve(tmp_path.as_uri(), given),
        lambda given: storage.write_bytes(given, b"lost"),
    ):
        with pytest.raises(storage.InvalidUri) as raised:
            ask(text)
        assert text in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a:b.svs", "12:30.svs", "case s3:x.svs", "s3x", "./s3:/x"])
def test_a_local_name_may_hold_a_colon(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes(name, b"kept")
    assert (tmp_path / name).read_bytes() == b"kept"
    assert storage.resolve(tmp_path.as_uri(), name) == storage.as_uri(tmp_path / name)


def test_objects_below_the_root_folder_have_their_uris() -> None:
    assert (
        storage.join("/", "a", "b.bin") == storage.join("file:///", "a/b.bin") == "file:///a/b.bin"
    )


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("file://server/share/a.svs", "names the host 'server'"),
        ("file:///a.svs?b", "query or fragment"),
        ("file:///case #3.svs", "'#' of a name as"),
    ],
)
def test_file_uris_that_name_another_file(uri: str, text: str) -> None:
    with pytest.raises(storage.InvalidUri, match=text):
        storage.read_bytes(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://bucket/x.svs?versionId=abc", "a query or fragment"),
        ("s3://bucket/case #3.svs", "write '?' and '#' of a key as %3F and %23"),
        ("s3://bucket/x.svs#", "a query or fragment"),
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
