"""Slides whose store fails: an object that goes, shrinks or can't be reached is one typed error too."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest

from pipelines import storage
from pipelines.slides.errors import BrokenSlide, SlideError, SlideNotFound
from pipelines.slides.geometry import Point
from pipelines.slides.slide import open_slide
from tests.pipelines.test_wrong_slides import svs


def test_object_that_goes_or_shrinks_in_s3(s3_bucket: str, tmp_path: Path) -> None:
    content = svs(tmp_path).read_bytes()
    uri = f"{s3_bucket}/wrong.svs"
    storage.write_bytes(uri, content)
    slide = open_slide(uri)
    for left in (content[:-100], content[:5000]):
        storage.write_bytes(uri, left)
        with pytest.raises(BrokenSlide, match=r"wrong\.svs"):
            open_slide(uri)
    with pytest.raises(BrokenSlide, match=r"wrong\.svs .* read to its end"):
        slide.read_region(Point(0, 0), 0, slide.size)
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).delete_object(Bucket=uri.split("/")[2], Key="wrong.svs")
    with pytest.raises(SlideError, match=r"wrong\.svs"):
        slide.read_region(Point(0, 0), 0, slide.size)
    with pytest.raises(SlideNotFound, match=r"wrong\.svs"):
        open_slide(uri)


@pytest.mark.parametrize("calls", [("get_range", "get_ranges"), ("get", "head", "get_range", "get_ranges")])
def test_store_that_does_not_answer(
    calls: tuple[str, ...], s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_bucket}/lost.svs"
    storage.write_bytes(uri, svs(tmp_path).read_bytes())
    slide = open_slide(uri)
    for name in calls:
        monkeypatch.setattr(storage.obstore, name, _unanswered)
    with pytest.raises(BrokenSlide, match=r"lost\.svs can't be read"):
        slide.read_region(Point(0, 0), 0, slide.size)
    if "get" in calls:
        with pytest.raises(SlideNotFound, match=r"lost\.svs can't be reached"):
            open_slide(uri)


def _unanswered(*given: object, **named: object) -> object:
    raise storage.obstore.exceptions.GenericError("error sending request")
