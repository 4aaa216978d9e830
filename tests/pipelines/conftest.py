"""Fixtures of several test files: an S3 endpoint, and the small slides of every format, each
written once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipelines import storage
from tests.support.formats import write_slide


@pytest.fixture(scope="module")
def s3_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty bucket on a real HTTP endpoint; copies of what can't be read in place go to a
    folder of the test."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "ACINUS_STAGING": str(tmp_path_factory.mktemp("staging")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        storage.forget_stores()
        bucket = f"slides-{uuid.uuid4().hex}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(
            Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        yield f"s3://{bucket}"
    storage.forget_stores()
    server.stop()


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small slide of a format (`tests.support.formats.FORMATS`) by its name: what to open."""
    written: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in written:
            written[name] = write_slide(name, tmp_path_factory.mktemp(name))
        return written[name]

    return find


def upload(path: Path, bucket: str) -> str:
    """Put a slide with all its files into the bucket; returns the URI to open."""
    prefix = f"{bucket}/{uuid.uuid4().hex}"
    for file in sorted(found for found in path.parent.rglob("*") if found.is_file()):
        storage.write_file(f"{prefix}/{file.relative_to(path.parent).as_posix()}", file)
    return f"{prefix}/{path.name}" + ("/" if path.is_dir() else "")
