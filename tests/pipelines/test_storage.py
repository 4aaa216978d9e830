"""The same calls on the local disk and on a real HTTP S3 endpoint."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from pipelines import storage
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.errors import SlideNotFound
from pipelines.slides.slide import open_slide


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)
    storage.forget_stores()
    name = f"slides-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    yield f"s3://{name}"
    storage.forget_stores()
    server.stop()


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


def test_s3(bucket: str) -> None:
    check_store(bucket)


def test_slide_on_s3_gives_the_same_pixels(bucket: str, generated_slide: Path) -> None:
    uri = f"{bucket}/cohort/a.svs"
    storage.write_file(uri, generated_slide)
    spec = PatchSpec(size=224, mpp=0.5)
    batches = []
    for place in (uri, str(generated_slide)):
        with open_slide(place) as slide:
            batches.append(decode_patches(fetch_shards(index_slide(slide, spec, organisation="org").shards)))
    np.testing.assert_array_equal(batches[0]["patch"], batches[1]["patch"])
    with pytest.raises(SlideNotFound):
        open_slide(f"{bucket}/cohort/b.svs")
