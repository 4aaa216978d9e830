"""A real S3 endpoint of this process, which other processes that are started reach too."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipelines import storage


@contextmanager
def s3_bucket(**variables: str) -> Iterator[str]:
    """URI of an empty bucket; the environment names the endpoint.

    Args:
        variables: further environment variables.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        **variables,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        storage.forget_stores()
        bucket = f"slides-{uuid.uuid4().hex}"
        boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"]).create_bucket(
            Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        yield f"s3://{bucket}"
    storage.forget_stores()
    server.stop()
