"""What of a TIFF is the slide: which directories are levels of one image, and which image of
OME-XML has their scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from pipelines.slides.deidentify import deidentify
from pipelines.slides.errors import BrokenSlide, MissingResolution, UnsupportedSlide
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.slides.slide import Slide
from tests.pipelines.test_slide import openslide_pixels
from tests.support import tiff_slides
from tests.support import tiff_writer as tw
from tests.support.formats import picture
from tests.support.tiff_slides import (
    DEFLATE,
    Pixels,
    Tags,
    TiffSlide,
    deflate,
    ome_xml,
    pyramid,
    resolution,
)

PURPLE, GREEN = (120, 60, 140), (60, 160, 80)
REDUCED: Tags = {tw.SUBFILE: ("long", [1])}
FULL: Tags = {tw.SUBFILE: ("long", [0])}
PAGE: Tags = {tw.SUBFILE: ("long", [2])}


def scene(colour: tuple[int, int, int], width: int, height: int = 0) -> Pixels:
    return np.full((height or width, width, 3), colour, np.uint8)


def write(path: Path, pages: list[tuple[Pixels, Tags]], *, sub: bool = False) -> Path:
    """A TIFF of those pages, each with further tags."""
    more = [tags for _, tags in pages]
    slide = TiffSlide(
        encode=deflate,
        compression=DEFLATE,
        base=resolution(0.25) | more[0],
        others=lambda k: more[k],
        sub=sub,
    )
    slide.write(path, [pixels for pixels, _ in pages])
    return path


def sizes(slide: Slide) -> list[tuple[int, int]]:
    return [(level.size.width, level.size.height) for level in slide.levels]


def is_all(slide: Slide, colour: tuple[int, int, int]) -> bool:
    """Whether every level shows nothing but `colour`."""
    return all(
        (slide.read_region(Point(0, 0), level.index, level.size) == colour).all()
        for level in slide.levels
    )


OME = {
    tw.DESCRIPTION: ("ascii", ome_xml([{"SizeX": 512, "SizeY": 512}, {"SizeX": 256, "SizeY": 256}]))
}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        (FULL, FULL),
        ({}, {tw.SUBFILE: ("long", [2])}),
        ({}, {tw.SUBFILE: ("long", [4])}),
        (OME, {}),
        (OME, FULL),
    ],
    ids=["untagged", "full", "page", "mask", "ome", "ome-full"],
)
def test_another_image_is_not_a_level(first: Tags, second: Tags, tmp_path: Path) -> None:
    """It may be of the same shape; patches would come from another scene."""
    path = write(tmp_path / "two.tiff", [(scene(PURPLE, 512), first), (scene(GREEN, 256), second)])
    with open_slide(str(path)) as slide, openslide.OpenSlide(path) as handle:
        assert sizes(slide) == list(handle.level_dimensions) == [(512, 512)]
        assert is_all(slide, PURPLE)


@pytest.mark.parametrize(
    ("pages", "levels"),
    [("PGg", "P"), ("PpGg", "Pp"), ("PGgp", "P"), ("GgP", "Gg"), ("pP", "Pp"), ("PMpm", "Pp")],
)
def test_of_two_pyramids_one_is_the_slide(pages: str, levels: str, tmp_path: Path) -> None:
    """Each reduced image follows its full one; OpenSlide takes both for one.

    Small letters are reduced images, M masks.
    """
    kinds = {
        "P": (PURPLE, 512, FULL),
        "p": (PURPLE, 256, REDUCED),
        "G": (GREEN, 512, FULL),
        "g": (GREEN, 128, REDUCED),
    }
    kinds |= {
        "M": (GREEN, 512, {tw.SUBFILE: ("long", [4])}),
        "m": (GREEN, 128, {tw.SUBFILE: ("long", [5])}),
    }
    path = write(
        tmp_path / "two.tiff",
        [(scene(kinds[name][0], kinds[name][1]), kinds[name][2]) for name in pages],
    )
    with open_slide(str(path)) as slide:
        assert sizes(slide) == [(kinds[name][1],) * 2 for name in levels]
        assert is_all(slide, kinds[levels[0]][0])


def test_subifds_of_another_ome_image_are_not_levels(tmp_path: Path) -> None:
    path = tmp_path / "two.ome.tiff"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for colour, side in ((GREEN, 256), (PURPLE, 512)):
            tiff.write(scene(colour, side), subifds=1, tile=(128, 128), photometric="rgb")
            tiff.write(scene(colour, side // 4), subfiletype=1, tile=(128, 128), photometric="rgb")
    with open_slide(str(path)) as slide:
        assert sizes(slide) == [(512, 512), (128, 128)]
        assert is_all(slide, PURPLE)


@pytest.mark.parametrize(
    ("how", "ome", "marked"),
    [("chain", False, True), ("sub", False, True), ("sub", True, True), ("sub", True, False)],
    ids=["tifffile", "tifffile-subifds", "ome", "ome-unmarked"],
)
def test_pyramids_of_writers_keep_their_levels(
    how: str, ome: bool, marked: bool, tmp_path: Path
) -> None:
    """libvips writes as the first does, with --subifd as the second.

    Bio-Formats and QuPath as the third.
    """
    path, levels = tmp_path / "slide.tiff", pyramid(picture())
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        form = {
            "tile": (128, 128),
            "photometric": "rgb",
            "compression": "zlib",
            "metadata": {"axes": "YXS"} if ome else None,
        }
        tiff.write(levels[0], subifds=2 if how == "sub" else None, **form)
        for level in levels[1:]:
            tiff.write(level, subfiletype=int(marked), **form)
    with open_slide(str(path)) as slide, openslide.OpenSlide(path) as handle:
        assert sizes(slide) == [level.shape[1::-1] for level in levels]
        for k, level in enumerate(levels):
            np.testing.assert_array_equal(
                slide.read_region(Point(0, 0), k, Size(*level.shape[1::-1])), level
            )
        if how == "chain":  # OpenSlide reads no SubIFDs
            assert sizes(slide) == list(handle.level_dimensions)
            shown = [
                openslide_pixels(handle, Point(0, 0), k, level.size)
                for k, level in enumerate(slide.levels)
            ]
            assert all(np.array_equal(a, b) for a, b in zip(shown, levels, strict=True))


def test_philips_levels_are_marked(tmp_path: Path) -> None:
    """An unmarked directory is not a level, so that the XML has one too many.

    OpenSlide refuses it too.
    """
    path = tmp_path / "slide.tiff"
    tiff_slides.write_philips(path, picture())
    with open_slide(str(path)) as slide, openslide.OpenSlide(path) as handle:
        assert sizes(slide) == list(handle.level_dimensions)
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        begin = tiff.pages[2].tags["NewSubfileType"].valueoffset
    path.write_bytes(content[:begin] + bytes(4) + content[begin + 4 :])
    with pytest.raises(openslide.OpenSlideError, match="not reduced"):
        openslide.OpenSlide(path)
    with pytest.raises(BrokenSlide, match="3 pixel spacings for 2 levels"):
        open_slide(str(path))


SMALL, LARGE = {"SizeX": 256, "SizeY": 256}, {"SizeX": 512, "SizeY": 384}


@pytest.mark.parametrize(
    ("images", "mpp"),
    [
        ([SMALL | {"PhysicalSizeX": 0.5}, LARGE | {"PhysicalSizeX": 0.25}], 0.25),
        ([LARGE | {"PhysicalSizeX": 0.25}, SMALL | {"PhysicalSizeX": 0.5}], 0.25),
        ([SMALL | {"PhysicalSizeX": 0.5}, LARGE], None),
        ([SMALL | {"PhysicalSizeX": 0.5}], None),
        ([LARGE | {"PhysicalSizeX": 0.5}, LARGE | {"PhysicalSizeX": 0.25}], None),
        ([LARGE | {"PhysicalSizeX": 0.5}, LARGE], None),
        ([LARGE | {"PhysicalSizeX": 0.25}, LARGE | {"PhysicalSizeX": 0.25}], 0.25),
        (
            [LARGE | {"PhysicalSizeX": 0.5, "IFD": 0}, LARGE | {"PhysicalSizeX": 0.25, "IFD": 1}],
            0.25,
        ),
        (
            [LARGE | {"PhysicalSizeX": 0.25, "IFD": 1}, LARGE | {"PhysicalSizeX": 0.5, "IFD": 0}],
            0.25,
        ),
        (
            [LARGE | {"PhysicalSizeX": 0.5, "IFD": 2}, LARGE | {"PhysicalSizeX": 0.25, "IFD": 3}],
            None,
        ),
        ([{"PhysicalSizeX": 0.5, "IFD": 0}, {"PhysicalSizeX": 0.25, "IFD": 1}], 0.25),
        ([{"PhysicalSizeX": 0.25}], 0.25),
    ],
)
def test_scale_is_that_of_the_image_shown(
    images: list[dict[str, float]], mpp: float | None, tmp_path: Path
) -> None:
    """The larger scene is the second directory."""
    xml: Tags = {tw.DESCRIPTION: ("ascii", ome_xml(images))}
    path = write(
        tmp_path / "two.ome.tiff", [(scene(GREEN, 256), xml), (scene(PURPLE, 512, 384), {})]
    )
    with open_slide(str(path)) as slide:
        assert sizes(slide) == [(512, 384)]
        if mpp is not None:
            assert slide.mpp == mpp
            return
        with pytest.raises(MissingResolution):
            _ = slide.mpp
    assert open_slide(str(path), mpp=0.3).mpp == 0.3


@pytest.mark.parametrize(
    ("used", "objective"),
    [
        (("Objective:0", "Objective:1"), 40.0),
        (("Objective:1", "Objective:0"), 20.0),
        (("", ""), None),
    ],
)
def test_objective_is_that_of_the_image_shown(
    used: tuple[str, str], objective: float | None, tmp_path: Path
) -> None:
    images = [size | {"Objective": name} for size, name in zip((SMALL, LARGE), used, strict=True)]
    xml: Tags = {tw.DESCRIPTION: ("ascii", ome_xml(images, objectives=(20.0, 40.0)))}
    path = write(
        tmp_path / "two.ome.tiff", [(scene(GREEN, 256), xml), (scene(PURPLE, 512, 384), {})]
    )
    with open_slide(str(path), mpp_from_objective=True) as slide:
        assert slide.objective == objective
        if objective:
            assert slide.mpp == 10 / objective


@pytest.mark.parametrize("kind", ["tiff", "aperio"])
def test_the_largest_picture_decides_though_it_is_in_strips(kind: str, tmp_path: Path) -> None:
    """gdaladdo adds tiled overviews to a picture in strips: at its mpp they would be wrong."""
    path, levels = tmp_path / "slide.tif", pyramid(picture())
    text = "Aperio Image Library v12|AppMag = 20|MPP = 0.25" if kind == "aperio" else None
    with tifffile.TiffWriter(path) as tiff:
        form = {"photometric": "rgb", "compression": "zlib", "metadata": None}
        tiff.write(levels[0], rowsperstrip=16, description=text, **form)
        for level in levels[1:]:
            tiff.write(level, tile=(128, 128), subfiletype=1, description=text, **form)
    with pytest.raises(UnsupportedSlide, match=r"picture \(701 x 563 px\) in strips") as caught:
        open_slide(str(path))
    assert caught.value.code == "strips"
    with pytest.raises(UnsupportedSlide, match="in strips"):
        deidentify(path, tmp_path / "copy.tif")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (None, 2),
        ("Heat map of H&E", 0),
        ("converted 40x -> 20x", 0),
        ("Patient label removed", 0),
        ("Overview of the macro, see label", 2),
    ],
)
def test_no_mark_or_word_makes_the_largest_picture_another(
    text: str | None, kind: int, tmp_path: Path
) -> None:
    """A page of several (NewSubfileType 2), or a description with a word such as label."""
    path, levels = tmp_path / "slide.tif", pyramid(picture())
    with tifffile.TiffWriter(path) as tiff:
        form = {"photometric": "rgb", "compression": "zlib", "metadata": None}
        tiff.write(levels[0], rowsperstrip=16, description=text, subfiletype=kind, **form)
        for level in levels[1:]:
            tiff.write(level, tile=(128, 128), subfiletype=1, **form)
    with pytest.raises(UnsupportedSlide, match=r"picture \(701 x 563 px\) in strips"):
        open_slide(str(path))
    with pytest.raises(UnsupportedSlide, match="in strips"):
        deidentify(path, tmp_path / "copy.tif")


@pytest.mark.parametrize("name", ["macro image", "a.svs [label image]", "extra"])
def test_names_of_other_ome_images_do_not_hide_level_0_in_strips(name: str, tmp_path: Path) -> None:
    path, levels = tmp_path / "slide.ome.tif", pyramid(picture())
    images = [{"SizeX": 701, "SizeY": 563, "Name": "HE"}, {"SizeX": 64, "SizeY": 64, "Name": name}]
    with tifffile.TiffWriter(path, ome=False) as tiff:
        form = {"photometric": "rgb", "compression": "zlib", "metadata": None}
        text = ome_xml(images)
        tiff.write(levels[0], rowsperstrip=16, subifds=1, description=text, **form)
        tiff.write(levels[1], tile=(128, 128), subfiletype=1, **form)
        tiff.write(scene(GREEN, 64), tile=(64, 64), **form)
    with pytest.raises(UnsupportedSlide, match=r"picture \(701 x 563 px\) in strips"):
        open_slide(str(path))


@pytest.mark.parametrize("name", ["macro", "label image", "a.svs [Overview]", "thumbnail_2"])
def test_a_larger_ome_image_with_the_name_of_a_macro_is_not_level_0(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "slide.ome.tif"
    images = [{"SizeX": 512, "SizeY": 512}, {"SizeX": 900, "SizeY": 400, "Name": name}]
    xml: Tags = {tw.DESCRIPTION: ("ascii", ome_xml(images))}
    write(path, [(scene(PURPLE, 512), xml), (scene(GREEN, 900, 400), {})])
    with open_slide(str(path)) as slide:
        assert sizes(slide) == [(512, 512)]
        assert is_all(slide, PURPLE)
        assert slide.remarks == ()


@pytest.mark.parametrize("name", ["Heat map of H&E", "Overview region 1", "label removed"])
def test_an_ome_image_whose_name_holds_a_word_more_is_the_slide(name: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.tif"
    images = [{"SizeX": 512, "SizeY": 512, "Name": name}, {"SizeX": 256, "SizeY": 256}]
    xml: Tags = {tw.DESCRIPTION: ("ascii", ome_xml(images))}
    write(path, [(scene(PURPLE, 512), xml), (scene(GREEN, 256), {})])
    with open_slide(str(path)) as slide:
        assert sizes(slide) == [(512, 512)]
        assert slide.remarks == ("holds 1 further picture that was not read (256 x 256 px)",)


def test_a_picture_in_strips_alone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", rowsperstrip=16, metadata=None)
    with pytest.raises(UnsupportedSlide, match=r"picture \(701 x 563 px\) in strips"):
        open_slide(str(path))


@pytest.mark.parametrize("kind", [0, 9])
def test_a_macro_larger_than_level_0_is_not_the_slide(kind: int, tmp_path: Path) -> None:
    """A small region cut from an SVS keeps the macro of the whole glass."""
    path = tmp_path / "slide.svs"
    with tifffile.TiffWriter(path) as tiff:
        form = {"photometric": "rgb", "compression": "zlib", "metadata": None}
        text = "Aperio Image Library v12|AppMag = 20|MPP = 0.25"
        tiff.write(scene(PURPLE, 256), tile=(128, 128), description=text, **form)
        tiff.write(scene(GREEN, 900, 400), subfiletype=kind, description="Aperio\nmacro", **form)
    with open_slide(str(path)) as slide:
        assert sizes(slide) == [(256, 256)]
        assert slide.remarks == ()


@pytest.mark.parametrize(
    ("side", "text"),
    [
        (512, "512x512 -> 512x512"),
        (375, "512x512"),
        (375, "375x375"),
        (256, "256x256"),
        (256, "256x256 -> x"),
    ],
    ids=["focal-plane", "no-whole-factor", "other-region", "half-as-wide", "its-own-arrow"],
)
def test_a_second_region_or_plane_of_svs_is_not_a_level(
    side: int, text: str, tmp_path: Path
) -> None:
    """Aperio marks no level; a second region may have the shape of the first."""
    path = tmp_path / "slide.svs"
    with tifffile.TiffWriter(path) as tiff:
        form = {"photometric": "rgb", "compression": "zlib", "metadata": None, "tile": (128, 128)}
        for colour, width, size in (
            (PURPLE, 512, "512x512"),
            (PURPLE, 128, "512x512 (128x128) -> 128x128"),
            (GREEN, side, text),
        ):
            description = f"Aperio Image Library v12\r\n{size} JPEG/RGB|AppMag = 20|MPP = 0.25"
            tiff.write(scene(colour, width), description=description, **form)
    with open_slide(str(path)) as slide:
        assert sizes(slide) == [(512, 512), (128, 128)]
        assert is_all(slide, PURPLE)
        shown = f"{side} x {side} px"
        assert slide.remarks == (f"holds 1 further picture that was not read ({shown})",)


@pytest.mark.parametrize("orientation", range(9))
def test_a_picture_that_is_stored_turned_is_refused(orientation: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", [(scene(PURPLE, 256), {274: ("short", [orientation])})])
    if orientation in (0, 1):  # 0 is not a value of TIFF's
        assert open_slide(str(path)).mpp == 0.25
        return
    with pytest.raises(UnsupportedSlide, match=f"Orientation {orientation}") as caught:
        open_slide(str(path))
    assert caught.value.code == "orientation"


@pytest.mark.parametrize(
    ("pages", "remark"),
    [
        ([(512, FULL), (256, REDUCED)], ""),
        ([(512, {}), (512, {})], "holds 1 further picture that was not read (512 x 512 px)"),
        (
            [(512, FULL), (256, REDUCED), (384, FULL), (512, FULL)],
            "holds 2 further pictures that were not read (the largest 512 x 512 px)",
        ),
        ([(512, FULL), (512, {tw.SUBFILE: ("long", [4])})], ""),
        ([(512, FULL), (300, {tw.DESCRIPTION: ("ascii", "Macro")})], ""),
        (
            [(512, PAGE), (512, PAGE)],
            "holds 1 further picture that was not read (512 x 512 px)",
        ),
        (
            [(512, FULL), (300, {tw.DESCRIPTION: ("ascii", "map of H&E, 40x -> 20x")})],
            "holds 1 further picture that was not read (300 x 300 px)",
        ),
    ],
    ids=["levels", "focal-plane", "scenes", "mask", "macro", "pages", "a-word-in-a-text"],
)
def test_further_pictures_are_remarked(
    pages: list[tuple[int, Tags]], remark: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tif", [(scene(PURPLE, side), tags) for side, tags in pages])
    with open_slide(str(path)) as slide:
        assert slide.remarks == ((remark,) if remark else ())


def test_a_second_scene_of_ome_tiff_is_remarked_and_never_lost(tmp_path: Path) -> None:
    """bfconvert writes each scene of a CZI as an image; label and macro are images too."""
    path = tmp_path / "scenes.ome.tiff"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for colour, side, name in ((PURPLE, 512, "1"), (GREEN, 512, "2"), (GREEN, 300, "label")):
            metadata = {"axes": "YXS", "Name": name}
            form = {"photometric": "rgb", "compression": "zlib", "metadata": metadata}
            tiff.write(scene(colour, side), tile=(128, 128), **form)
    with open_slide(str(path)) as slide:
        assert is_all(slide, PURPLE)
        assert slide.remarks == ("holds 1 further picture that was not read (512 x 512 px)",)
    with pytest.raises(UnsupportedSlide, match="that de-identification would remove"):
        deidentify(path, tmp_path / "copy.ome.tiff")
