"""Fixtures of several test files: an S3 endpoint, and the small slides of every format, each
written once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines import storage
from tests.support import s3
from tests.support.formats import write_slide


@pytest.fixture(scope="module")
def s3_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty bucket on a real HTTP endpoint; copies of what can't be read in place go to a
    folder of the test."""
    with s3.s3_bucket(ACINUS_STAGING=str(tmp_path_factory.mktemp("staging"))) as bucket:
        yield bucket


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
