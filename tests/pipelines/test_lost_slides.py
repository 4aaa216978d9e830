"""Slides whose store fails: an object that goes, shrinks or can't be reached is a typed error."""

from __future__ import annotations

import errno
import http.client
import http.server
import os
import threading
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from obstore.exceptions import GenericError

from pipelines import storage
from pipelines.completion import slide_version
from pipelines.manifest import read_manifest
from pipelines.slides import source
from pipelines.slides.errors import BrokenSlide, ManifestError, SlideError, SlideNotFound
from pipelines.slides.geometry import Point
from pipelines.slides.opening import open_slide
from pipelines.storage import s3
from tests.pipelines.conftest import upload
from tests.pipelines.test_wrong_slides import svs
from tests.support.formats import write_slide

Faults = dict[str, list[int]]
"""Statuses that the store answers the next requests with, by name of the object (of the bucket for
lists); 200 stands for the true answer."""


def test_object_that_goes_or_shrinks_in_s3(s3_bucket: str, tmp_path: Path) -> None:
    content = svs(tmp_path).read_bytes()
    uri = f"{s3_bucket}/wrong.svs"
    storage.write_bytes(uri, content)
    slide = open_slide(uri)
    for left in (content[:-100], content[:5000]):
        storage.write_bytes(uri, left)
        with pytest.raises(BrokenSlide, match=r"wrong\.svs"):
            open_slide(uri)
    with pytest.raises(BrokenSlide, match=r"wrong\.svs has been replaced"):
        slide.read_region(Point(0, 0), 0, slide.size)
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).delete_object(
        Bucket=uri.split("/")[2], Key="wrong.svs"
    )
    with pytest.raises(SlideError, match=r"wrong\.svs"):
        slide.read_region(Point(0, 0), 0, slide.size)
    with pytest.raises(SlideNotFound, match=r"wrong\.svs"):
        open_slide(uri)


@pytest.mark.parametrize("calls", [("get",), ("get", "head")])
def test_store_that_does_not_answer(
    calls: tuple[str, ...], s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_bucket}/lost.svs"
    storage.write_bytes(uri, svs(tmp_path).read_bytes())
    slide = open_slide(uri)
    for name in calls:
        monkeypatch.setattr(s3.obstore, name, _unanswered)
    with pytest.raises(BrokenSlide, match=r"lost\.svs can't be read"):
        slide.read_region(Point(0, 0), 0, slide.size)
    if "head" in calls:
        with pytest.raises(SlideNotFound, match=r"lost\.svs can't be reached"):
            open_slide(uri)


def _unanswered(*given: object, **named: object) -> object:
    raise GenericError("error sending request")


class _Faulty(http.server.BaseHTTPRequestHandler):
    """Passes requests on to an S3 server, except those that shall fail."""

    protocol_version = "HTTP/1.1"
    server_behind: str
    faults: Faults

    def do_GET(self) -> None:
        """GetObject, and by any other method what that asks for."""
        sent = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        waiting = self.faults.get(urlsplit(self.path).path.rpartition("/")[2], [])
        status, headers, body = waiting.pop(0) if waiting else 200, {"Content-Length": "0"}, b""
        if status == 200:
            behind = http.client.HTTPConnection(self.server_behind)
            behind.request(self.command, self.path, sent, dict(self.headers))
            answer = behind.getresponse()
            status, headers, body = answer.status, dict(answer.headers), answer.read()
            behind.close()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815 - as the base class calls them

    def log_message(self, *values: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def faults(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Make the store fail: what the test puts in is answered once; the client tries once."""
    found: Faults = {}
    behind = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    handler = type("Handler", (_Faulty,), {"server_behind": behind, "faults": found})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(s3, "PATIENCE", timedelta())
    monkeypatch.setattr(source, "BLOCK", 1000)  # the first bytes are not all of a header
    storage.forget_stores()
    yield found
    storage.forget_stores()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("statuses", [[503], [400], [200, 503], [200, 400]], ids=str)
@pytest.mark.parametrize(
    "opened", ["", "level-0.dcm", "level-1.dcm"], ids=["folder", "file", "beside"]
)
def test_a_series_is_not_opened_without_a_level_after_an_outage(
    opened: str, statuses: list[int], faults: Faults, s3_bucket: str, tmp_path: Path
) -> None:
    """Neither where a file's first bytes nor where the rest of its header can't be read."""
    uri = upload(write_slide("dicom-jpeg", tmp_path), s3_bucket) + opened
    with open_slide(uri) as slide:
        expected = (slide.mpp, slide.levels, slide.identity)
    faults["level-0.dcm"] = list(statuses)
    with pytest.raises(
        SlideNotFound, match=r"level-0\.dcm can't be reached in its store .*; check the connection"
    ):
        open_slide(uri)
    assert not faults["level-0.dcm"]
    with open_slide(uri) as slide:
        assert (slide.mpp, slide.levels, slide.identity) == expected


def test_a_store_that_asks_for_less_gets_time(
    faults: Faults, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PATIENCE", timedelta(minutes=1))
    storage.forget_stores()
    uri = upload(write_slide("dicom-jpeg", tmp_path), s3_bucket)
    faults["level-0.dcm"] = [503, 503, 503]
    with open_slide(uri) as slide:
        assert (slide.mpp, len(slide.levels)) == (0.5, 3)


@pytest.mark.parametrize("statuses", [[503], [400], [200, 503]], ids=str)
def test_an_outage_is_not_reported_as_damage(
    statuses: list[int], faults: Faults, s3_bucket: str, tmp_path: Path
) -> None:
    uri = f"{s3_bucket}/outage.svs"
    storage.write_bytes(uri, svs(tmp_path).read_bytes())
    faults["outage.svs"] = list(statuses)
    with pytest.raises(SlideNotFound, match=r"outage\.svs can't be reached in its store"):
        open_slide(uri)


def test_a_series_whose_folder_is_not_listed(
    faults: Faults, s3_bucket: str, tmp_path: Path
) -> None:
    uri = upload(write_slide("dicom-jpeg", tmp_path), s3_bucket) + "level-0.dcm"
    for read in (open_slide, slide_version):
        faults[s3_bucket.rpartition("/")[2]] = [503]
        with pytest.raises(SlideNotFound, match="can't be reached in its store") as raised:
            read(uri)
        assert s3_bucket not in "".join(traceback.format_exception(raised.value))


def test_an_empty_object_is_not_an_outage(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/empty.svs"
    storage.write_bytes(uri, b"")
    with pytest.raises(BrokenSlide, match=r"empty\.svs is an empty file"):
        open_slide(uri)


def test_errors_and_tracebacks_hold_no_folders_of_a_slide(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does its traceback: those go to logs, and folders can have names of patients."""
    folder = tmp_path / "Jane Doe"
    folder.mkdir()
    series = write_slide("dicom-jpeg", folder)
    uri = f"{s3_bucket}/Jane Doe/a.svs"
    storage.write_bytes(uri, b"0123")
    version = storage.read_head(uri, 4).version
    storage.write_bytes(uri, b"4567")
    with pytest.raises(storage.ObjectChanged):
        storage.read_ranges(uri, [0], [4], version=version)
    with pytest.raises(ManifestError, match=r"m\.csv is not there") as unlisted:
        read_manifest(str(folder / "m.csv"))
    path = svs(folder)
    slide = open_slide(str(path))
    path.unlink()
    with pytest.raises(BrokenSlide, match="read to its end") as gone:
        slide.read_region(Point(0, 0), 0, slide.size)

    def fail(folder: Path) -> Iterator[Path]:
        raise OSError(errno.EIO, "Input/output error", str(folder))

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(
        SlideNotFound, match=r"series can't be read from its disk \(Input/output error\)"
    ) as failed:
        open_slide(str(series))
    for raised in (unlisted, gone, failed):
        assert "Jane" not in "".join(traceback.format_exception(raised.value))
