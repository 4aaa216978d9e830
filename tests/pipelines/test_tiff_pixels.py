"""Compressions and kinds of pixels of a TIFF: read in place, left to OpenSlide, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipelines.slides.errors import UnsupportedSlide
from pipelines.slides.geometry import Point
from pipelines.slides.opening import open_slide
from tests.support.formats import picture


@pytest.mark.parametrize("name", ["WEBP", "JPEGXL", "LZMA", "PNG", "JPEGXR", "LERC"])
def test_a_compression_that_is_not_read_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    form = {"photometric": "rgb", "tile": (128, 128), "metadata": None}
    tifffile.imwrite(path, picture(), compression=name.lower(), **form)
    with pytest.raises(UnsupportedSlide, match=f"compressed as {name}.*JPEG 2000, LZW") as caught:
        open_slide(str(path))
    assert (caught.value.code, caught.value.facts) == ("compression", {"compression": name})


@pytest.mark.parametrize("compression", ["packbits", "zstd"])
def test_compressions_left_to_openslide_are_read(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    form = {"photometric": "rgb", "tile": (128, 128), "metadata": None}
    tifffile.imwrite(path, picture(), compression=compression, **form)
    with open_slide(str(path)) as slide:
        np.testing.assert_array_equal(slide.read_region(Point(0, 0), 0, slide.size), picture())


PIXELS = {
    "grey": (picture()[..., 0], {"photometric": "minisblack"}),
    "grey and alpha": (
        picture()[..., :2],
        {"photometric": "minisblack", "extrasamples": ["UNASSALPHA"]},
    ),
    "five channels": (
        np.concatenate([picture(), picture()[..., :2]], axis=2),
        {"photometric": "rgb", "extrasamples": ["UNSPECIFIED"] * 2},
    ),
    "float": (picture().astype(np.float32) / 255, {"photometric": "rgb"}),
    "32 bits": (picture().astype(np.uint32), {"photometric": "rgb"}),
    "12 bits": (
        picture().astype(np.uint16) * 16,
        {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"bitspersample": 12}},
    ),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_that_are_not_colours_of_8_bits_are_named(name: str, tmp_path: Path) -> None:
    """OpenSlide shows some of them in wrong colours: of five channels it takes two for alpha."""
    path, (pixels, how) = tmp_path / "slide.tif", PIXELS[name]
    tifffile.imwrite(path, pixels, tile=(128, 128), metadata=None, **how)
    with pytest.raises(UnsupportedSlide, match=r"greyscale|samples of") as caught:
        open_slide(str(path))
    assert caught.value.code == "pixels"


@pytest.mark.parametrize("how", ["planes", "16 bits", "cmyk"])
def test_pixels_left_to_openslide_have_their_colours(how: str, tmp_path: Path) -> None:
    path, pixels = tmp_path / "slide.tif", picture()
    form = {"tile": (128, 128), "metadata": None, "photometric": "rgb"}
    if how == "planes":
        stored = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
        tifffile.imwrite(path, stored, planarconfig="separate", **form)
    elif how == "16 bits":
        tifffile.imwrite(path, pixels.astype(np.uint16) * 257, **form)
    else:
        black = np.zeros((*pixels.shape[:2], 1), np.uint8)
        stored = np.concatenate([255 - pixels, black], axis=2)
        tifffile.imwrite(path, stored, **form | {"photometric": "separated"})
    with open_slide(str(path)) as slide:
        np.testing.assert_array_equal(slide.read_region(Point(0, 0), 0, slide.size), pixels)
