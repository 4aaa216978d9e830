"""Colour profiles: recorded, applied only if a PatchSpec asks, and as Pillow applies them.

OpenSlide gives the profile of BIF, and none of NDPI, SCN and Trestle.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipelines import icc
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from tests.pipelines.test_slide import openslide_pixels
from tests.support import dicom_slides, tiff_slides, vendor_slides
from tests.support.formats import FORMATS, picture
from tests.support.icc_profile import matrix_profile
from tests.support.shared_data import needs_shared_data, shared_data
from tests.support.tiff_slides import Pixels, Tags, TiffSlide

PROFILE = matrix_profile()
WITH_PROFILE = (
    "svs-jpeg",
    "svs-33005",
    "tiff-jpeg",
    "tiff-deflate",
    "ome-tiff",
    "philips",
    "dicom-jpeg",
    "dicom-jpeg2000",
    "bif",
)


@dataclass(kw_only=True)
class TiffSlideWithProfile(TiffSlide):
    """A TIFF with a profile in each of its directories."""

    profile: bytes

    def _picture(self, pixels: Pixels) -> Tags:
        return super()._picture(pixels) | tiff_slides.profile(self.profile)


def write(name: str, folder: Path, profile: bytes) -> Path:
    """A small slide that carries a profile."""
    path = folder / FORMATS[name].file
    if name in dicom_slides.SERIES:
        dicom_slides.SERIES[name].write(path, picture(), icc=profile)
    elif name == "bif":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                vendor_slides, "TiffSlide", partial(TiffSlideWithProfile, profile=profile)
            )
            vendor_slides.write_bif(path, picture())
    else:
        tiff_slides.WRITERS[name](path, picture(), icc=profile)
    return path


def as_pillow(pixels: NDArray[np.uint8], profile: ImageCms.ImageCmsProfile) -> NDArray[np.uint8]:
    """The picture in sRGB."""
    return np.asarray(
        ImageCms.profileToProfile(Image.fromarray(pixels), profile, ImageCms.createProfile("sRGB"))
    )


@pytest.mark.parametrize("name", WITH_PROFILE)
def test_profile_is_recorded_and_applied_when_asked(name: str, tmp_path: Path) -> None:
    path = write(name, tmp_path, PROFILE)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(PROFILE))
    with open_slide(str(path)) as slide:
        assert slide.icc.rstrip(b"\0") == PROFILE.rstrip(b"\0")
        batches = {}
        for asked in (False, True):
            spec = PatchSpec(size=64, mpp=0.5, min_tissue=0.1, icc=asked)
            batches[asked] = decode_patches(
                fetch_shards(index_slide(slide, spec, organisation="org").shards)
            )
        for k in range(0, len(batches[True]["x"]), 7):
            origin = Point(int(batches[True]["x"][k]), int(batches[True]["y"][k]))
            region = slide.read_region(origin, 0, Size(64, 64))
            np.testing.assert_array_equal(batches[False]["patch"][k], region)
            np.testing.assert_array_equal(batches[True]["patch"][k], as_pillow(region, profile))
    assert np.abs(batches[True]["patch"].astype(int) - batches[False]["patch"]).mean() > 5


def test_it_is_off_unless_asked_for() -> None:
    assert PatchSpec().icc is False
    assert PatchSpec(icc=True).hash != PatchSpec().hash


@pytest.mark.parametrize("name", ["svs-jpeg", "tiff-jpeg", "dicom-jpeg", "bif"])
def test_openslide_reads_the_same_profile(name: str, tmp_path: Path) -> None:
    path = write(name, tmp_path, PROFILE)
    with (
        open_slide(str(path)) as slide,
        openslide.OpenSlide(path / "level-0.dcm" if path.is_dir() else path) as handle,
    ):
        theirs = handle.color_profile
        assert theirs is not None
        assert slide.icc == theirs.tobytes()
        ours = slide.read_region(Point(100, 100), 0, Size(200, 200))[None].copy()
        expected = as_pillow(openslide_pixels(handle, Point(100, 100), 0, Size(200, 200)), theirs)
    icc.to_srgb(ours, PROFILE)
    np.testing.assert_array_equal(ours[0], expected)


def test_slide_without_profile_is_left_as_it_is(small_slide: Callable[[str], Path]) -> None:
    patches = []
    for asked in (False, True):
        with open_slide(str(small_slide("svs-jpeg"))) as slide:
            assert slide.icc == b""
            spec = PatchSpec(size=64, mpp=0.5, min_tissue=0.1, icc=asked)
            patches.append(
                decode_patches(fetch_shards(index_slide(slide, spec, organisation="org").shards))[
                    "patch"
                ]
            )
    np.testing.assert_array_equal(*patches)


@pytest.mark.parametrize(
    "profile", [b"no profile at all", PROFILE[:200], PROFILE.replace(b"RGB XYZ ", b"CMYKXYZ ")]
)
def test_damaged_profile_is_an_error_only_where_it_is_needed(
    profile: bytes, tmp_path: Path
) -> None:
    path = write("svs-jpeg", tmp_path, profile)
    with open_slide(str(path)) as slide:
        shards = index_slide(slide, PatchSpec(size=64, mpp=0.5), organisation="org").shards
        assert len(decode_patches(fetch_shards(shards))["patch"])
        with pytest.raises(
            BrokenSlide, match=r"slide\.svs has an ICC profile that can't be used.*without ICC"
        ):
            index_slide(slide, PatchSpec(size=64, mpp=0.5, icc=True), organisation="org")
    asked = shards.set_column(
        shards.schema.get_field_index("icc"),
        shards.schema.field("icc"),
        pa.array([True] * len(shards)),
    )
    with pytest.raises(BrokenSlide, match=r"ICC profile that can't be used.*without ICC"):
        decode_patches(fetch_shards(asked))


@needs_shared_data
def test_real_profile() -> None:
    folder = shared_data()
    assert folder is not None
    path = folder / "odd" / "boxes.tiff"
    with open_slide(str(path)) as slide, openslide.OpenSlide(path) as handle:
        theirs = handle.color_profile
        assert theirs is not None
        assert slide.icc == theirs.tobytes()
        for level in slide.levels:
            ours = slide.read_region(Point(0, 0), level.index, level.size)[None].copy()
            expected = openslide_pixels(handle, Point(0, 0), level.index, level.size)
            np.testing.assert_array_equal(ours[0], expected)
            icc.to_srgb(ours, slide.icc)
            np.testing.assert_array_equal(ours[0], as_pillow(expected, theirs))
