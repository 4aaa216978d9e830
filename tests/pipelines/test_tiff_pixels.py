"""Compressions and kinds of pixels of a TIFF: read in place, left to OpenSlide, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from pipelines.slides.errors import UnsupportedSlide
from pipelines.slides.geometry import Point
from pipelines.slides.opening import open_slide
from tests.support.formats import picture
from tests.support.tiff_slides import ome_xml, pyramid


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


KINDS = {
    "ZSTD": {"compression": "zstd"},
    "PACKBITS": {"compression": "packbits"},
    "a plane per colour": {"compression": "lzw", "planarconfig": "separate"},
    "16 bits": {"compression": "lzw"},
}
"""What is left to OpenSlide, by the word of the error."""


def stored(kind: str, pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
    """Pixels as `tifffile` takes them for a kind."""
    if kind == "16 bits":
        return pixels.astype(np.uint16) * 257
    return np.moveaxis(pixels, 2, 0) if "plane" in kind else pixels


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_page_is_never_shown_for_a_larger_one(kind: str, tmp_path: Path) -> None:
    """OpenSlide takes the first page for level 0, whatever follows."""
    path, levels = tmp_path / "slide.tif", pyramid(picture())
    form = {"photometric": "rgb", "tile": (128, 128), "metadata": None, **KINDS[kind]}
    with tifffile.TiffWriter(path) as tiff:
        for level in (levels[1], levels[0]):
            tiff.write(stored(kind, level), **form)
    with pytest.raises(UnsupportedSlide, match=f"several pictures with {kind}"):
        open_slide(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pyramid_left_to_openslide_keeps_levels_and_remarks(kind: str, tmp_path: Path) -> None:
    path, levels = tmp_path / "slide.tif", pyramid(picture())
    form = {"photometric": "rgb", "tile": (128, 128), "metadata": None, **KINDS[kind]}
    with tifffile.TiffWriter(path) as tiff:
        for k, level in enumerate(levels):
            tiff.write(stored(kind, level), subfiletype=int(k > 0), **form)
        tiff.write(stored(kind, levels[1]), **form)
    with open_slide(str(path)) as slide:
        assert [level.size.shape for level in slide.levels] == [of.shape[:2] for of in levels]
        np.testing.assert_array_equal(slide.read_region(Point(0, 0), 0, slide.size), picture())
        height, width = levels[1].shape[:2]
        shown = f"{width} x {height} px"
        assert slide.remarks == (f"holds 1 further picture that was not read ({shown})",)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subs", [0, 1])
def test_ome_tiff_left_to_openslide_keeps_its_mpp_or_is_refused(
    subs: int, kind: str, tmp_path: Path
) -> None:
    """OpenSlide knows neither OME-XML nor SubIFDs."""
    path, levels = tmp_path / "slide.ome.tif", pyramid(picture())
    text = ome_xml([{"SizeX": 701, "SizeY": 563, "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}])
    form = {"photometric": "rgb", "tile": (128, 128), "metadata": None, **KINDS[kind]}
    with tifffile.TiffWriter(path, ome=False) as tiff:
        tiff.write(stored(kind, levels[0]), subifds=subs, description=text, **form)
        for level in levels[1 : 1 + subs]:
            tiff.write(stored(kind, level), subfiletype=1, **form)
    if subs:
        with pytest.raises(UnsupportedSlide, match=f"its pyramid in SubIFDs with {kind}"):
            open_slide(str(path))
        return
    with open_slide(str(path)) as slide:
        assert (slide.mpp, slide.vendor) == (0.25, "ome-tiff")
        np.testing.assert_array_equal(slide.read_region(Point(0, 0), 0, slide.size), picture())


def test_a_second_region_of_an_svs_left_to_openslide_is_not_a_level(tmp_path: Path) -> None:
    path, levels = tmp_path / "slide.svs", pyramid(picture())
    form = {"photometric": "rgb", "tile": (128, 128), "metadata": None, "compression": "zstd"}
    with tifffile.TiffWriter(path) as tiff:
        for level in levels[:2]:
            size = f"{level.shape[1]}x{level.shape[0]}"
            tiff.write(level, description=f"Aperio Image\r\n{size} x|MPP = 0.25", **form)
    with pytest.raises(UnsupportedSlide, match="several pictures with ZSTD"):
        open_slide(str(path))
