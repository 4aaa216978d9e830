"""De-identified copies: names and glass labels are gone from the bytes, pixels stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from pipelines.slides import formats
from pipelines.slides.deidentify import deidentify
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Point
from pipelines.slides.opening import open_slide
from tests.support import tiff_writer as tw
from tests.support.formats import FORMATS, picture
from tests.support.shared_data import needs_shared_data, shared_data
from tests.support.tiff_slides import (
    BIG,
    DEFLATE,
    MOTOROLA,
    MPP,
    TILE,
    Pixels,
    Tags,
    deflate,
    has_opj_compress,
    pyramid,
    resolution,
)
from tests.support.tiff_writer import Directory, TiffForm

CLEANED = {form.vendor for form in formats.FORMATS if form.deidentified}
REFUSED = [name for name, form in FORMATS.items() if form.vendor not in CLEANED]
"""Formats that are recognised only by text that would have to go, or that are several files."""
NAME = b"Doe^Jane"


def levels_of(path: Path) -> list[NDArray[np.uint8]]:
    """All pixels of every level, uint8 [H, W, 3]."""
    with open_slide(str(path)) as slide:
        return [slide.read_region(Point(0, 0), level.index, level.size) for level in slide.levels]


def content(path: Path) -> bytes:
    """The bytes of a file, or of all files of a folder."""
    return (
        path.read_bytes()
        if path.is_file()
        else b"".join(file.read_bytes() for file in sorted(path.iterdir()))
    )


def assert_same_pixels(source: Path, copy: Path) -> None:
    for one, other in zip(levels_of(source), levels_of(copy), strict=True):
        np.testing.assert_array_equal(one, other)


def test_svs_loses_names_and_labels(generated_slide: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.svs"
    with tifffile.TiffFile(generated_slide) as tiff:
        label = next(page for page in tiff.pages if "label" in str(page.description))
        label_bytes = generated_slide.read_bytes()[label.dataoffsets[0] :][
            : label.databytecounts[0]
        ]
    assert b"DOE^JANE" in generated_slide.read_bytes()
    report = deidentify(generated_slide, copy)
    assert report.images == ("thumbnail", "label", "macro")
    assert set(report.fields) == {"Date", "Filename", "Software", "User"}
    for secret in (b"DOE", b"JANE", b"01/02/24", b"technician", label_bytes, label_bytes[100:200]):
        assert secret not in content(copy)
    with openslide.OpenSlide(copy) as handle:
        assert not handle.associated_images
        assert handle.properties["openslide.vendor"] == "aperio"
    with open_slide(str(generated_slide)) as before, open_slide(str(copy)) as after:
        assert (before.mpp, before.vendor, before.levels) == (after.mpp, after.vendor, after.levels)
    assert_same_pixels(generated_slide, copy)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in REFUSED])
def test_pixels_and_scale_of_every_format_stay(
    name: str, small_slide: Callable[[str], Path], tmp_path: Path
) -> None:
    if name == "svs-33003-422" and not has_opj_compress():
        pytest.skip("needs opj_compress")
    source = small_slide(name)
    copy = tmp_path / source.name
    deidentify(source, copy)
    assert_same_pixels(source, copy)
    with open_slide(str(source)) as before, open_slide(str(copy)) as after:
        for fact in ("vendor", "recorded_mpp", "objective", "levels", "icc"):
            assert getattr(before, fact) == getattr(after, fact)
    readable, file = (
        path if path.is_file() else sorted(path.iterdir())[0] for path in (source, copy)
    )
    assert readable.stat().st_size == file.stat().st_size
    if name != "dicom-jpegls" and openslide.OpenSlide.detect_format(
        readable
    ):  # which OpenSlide knows, but not its codec
        with openslide.OpenSlide(readable) as before, openslide.OpenSlide(file) as after:
            assert before.level_dimensions == after.level_dimensions


@pytest.mark.parametrize("name", REFUSED)
def test_formats_that_would_read_differently_are_refused(
    name: str, small_slide: Callable[[str], Path], tmp_path: Path
) -> None:
    source = small_slide(name)
    with pytest.raises(UnsupportedSlide, match="de-identified"):
        deidentify(source, tmp_path / source.name)
    assert not (tmp_path / source.name).exists()


def test_the_copy_is_always_the_same(generated_slide: Path, tmp_path: Path) -> None:
    copies = [tmp_path / "a.svs", tmp_path / "b.svs"]
    reports = [deidentify(generated_slide, copy) for copy in copies]
    assert (reports[0], content(copies[0])) == (reports[1], content(copies[1]))


def test_a_label_behind_a_broken_chain_is_not_let_through(
    generated_slide: Path, tmp_path: Path
) -> None:
    data = bytearray(generated_slide.read_bytes())
    with tifffile.TiffFile(generated_slide) as tiff:
        page = next(page for page in tiff.pages if "label" in str(page.description))
        before = tiff.pages[page.index - 1]
        end = before.offset + 2 + len(before.tags) * 12
    data[end : end + 4] = (len(data) + 8).to_bytes(4, "little")
    broken = tmp_path / "broken.svs"
    broken.write_bytes(data)
    with pytest.raises(BrokenSlide, match="truncated"):
        deidentify(broken, tmp_path / "copy.svs")
    assert not (tmp_path / "copy.svs").exists()


def test_what_cannot_be_cleaned_is_not_taken(tmp_path: Path) -> None:
    odd = tmp_path / "odd.mrxs"
    odd.write_bytes(b"\xff\xd8\xff" + b"\0" * 1000)
    with pytest.raises(UnsupportedSlide, match="not a MIRAX slide, or lacks the files"):
        deidentify(odd, tmp_path / "copy")
    odd.write_bytes(b"")
    with pytest.raises(BrokenSlide, match="empty file"):
        deidentify(odd, tmp_path / "copy")


# ---- TIFF, directory by directory ----------------------------------------------------------------


def image(
    stream: IO[bytes], pixels: Pixels, tags: Tags, *, tiled: bool = True
) -> tuple[Directory, list[bytes]]:
    """Write an image's tiles, or its one strip; returns its directory and the encoded parts."""
    parts = [deflate(part) for part in (tw.tiles_of(pixels, TILE) if tiled else [pixels])]
    offsets = [
        stream.seek(0, 2) and stream.write(part) and stream.tell() - len(part) for part in parts
    ]
    lengths = [len(part) for part in parts]
    height, width = pixels.shape[:2]
    where: Tags = {
        tw.STRIP_OFFSETS: ("long", offsets),
        tw.STRIP_ROWS: ("long", [height]),
        tw.STRIP_LENGTHS: ("long", lengths),
    }
    if tiled:
        where = {tw.TILE_WIDTH: ("long", [TILE]), tw.TILE_HEIGHT: ("long", [TILE])}
        where |= {tw.TILE_OFFSETS: ("long", offsets), tw.TILE_LENGTHS: ("long", lengths)}
    shape: Tags = {
        tw.WIDTH: ("long", [width]),
        tw.HEIGHT: ("long", [height]),
        tw.BITS: ("short", [8, 8, 8]),
    }
    shape |= {
        tw.COMPRESSION: ("short", [DEFLATE]),
        tw.PHOTOMETRIC: ("short", [2]),
        tw.SAMPLES: ("short", [3]),
    }
    return Directory(tags=shape | where | tags), parts


def label_pixels(shape: tuple[int, ...]) -> Pixels:
    """What a label might show, in bytes that occur nowhere else."""
    return np.random.default_rng(5).integers(0, 255, shape, np.uint8)


OME_XML = (
    '<?xml version="1.0" encoding="UTF-8"?><OME '
    'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" Creator="Doe^Jane">'
    '<Instrument ID="Instrument:Doe^Jane"><Microscope SerialNumber="Doe^Jane"/>'
    '<Objective ID="Objective:0" NominalMagnification="20" SerialNumber="Doe^Jane"/></Instrument>'
    '<Image ID="Image:Doe^Jane" Name="Doe^Jane.svs"><AcquisitionDate>'
    "1999-12-31T23:59:59</AcquisitionDate>"
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{0}" SizeY="{1}" SizeC="3" '
    'SizeZ="1" SizeT="1" '
    'PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" PhysicalSizeY="0.5" PhysicalSizeYUnit="µm">'
    '<Channel ID="Channel:0:0" '
    'Name="Doe^Jane" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"><UUID '
    'FileName="Doe^Jane.tiff">x</UUID></TiffData>'
    '</Pixels></Image><Image ID="Image:1" Name="label image"><Pixels ID="Pixels:1" '
    'DimensionOrder="XYCZT" Type="uint8" '
    'SizeX="{2}" SizeY="{3}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="9" '
    'PhysicalSizeXUnit="µm"><Channel ID="Channel:1:0" '
    'SamplesPerPixel="3"/><TiffData IFD="1" PlaneCount="1"/></Pixels></Image>'
    '<StructuredAnnotations><CommentAnnotation ID="Annotation:0"><Value>Doe^Jane</Value>'
    "</CommentAnnotation>"
    "</StructuredAnnotations></OME>"
)


@pytest.mark.parametrize("form", [TiffForm(), BIG, MOTOROLA], ids=["classic", "big", "motorola"])
@pytest.mark.parametrize("tiled", [True, False], ids=["tiles", "strips"])
@pytest.mark.parametrize("subfile", [0, 1])
@pytest.mark.parametrize("side", [(200, 300), (563, 701)], ids=["small", "as-the-slide"])
def test_ome_tiff_loses_the_images_that_its_xml_names(
    tmp_path: Path, form: TiffForm, tiled: bool, subfile: int, side: tuple[int, int]
) -> None:
    source, copy = tmp_path / "slide.ome.tiff", tmp_path / "copy.ome.tiff"
    levels = pyramid(picture())
    height, width = levels[0].shape[:2]
    with source.open("wb") as stream:
        stream.write(b"\0" * form.header_size)
        xml = OME_XML.format(width, height, side[1], side[0])
        base, _ = image(stream, levels[0], {tw.DESCRIPTION: ("ascii", xml)})
        base.subs = [image(stream, level, {tw.SUBFILE: ("long", [1])})[0] for level in levels[1:]]
        label, parts = image(
            stream, label_pixels((*side, 3)), {tw.SUBFILE: ("long", [subfile])}, tiled=tiled
        )
        label.subs = [image(stream, label_pixels((100, 150, 3)), {tw.SUBFILE: ("long", [1])})[0]]
        tw.write_directories(stream, [base, label], form)
    report = deidentify(source, copy)
    assert report.images == ("label",)
    cleaned = content(copy)
    assert all(
        part[start : start + 32] not in cleaned
        for part in parts
        for start in range(0, len(part) - 32, 997)
    )
    for secret in (NAME, b"1999-12-31", b"label"):
        assert secret in content(source)
        assert secret not in cleaned
    assert_same_pixels(source, copy)
    with open_slide(str(copy)) as slide:
        assert (slide.vendor, slide.mpp, slide.objective, len(slide.levels)) == (
            "ome-tiff",
            0.5,
            20,
            3,
        )
    with tifffile.TiffFile(copy) as tiff:
        assert len(tiff.pages) == 1
        assert len(tiff.series) == 1
        assert len(tiff.series[0].levels) == 3


PLANTED: dict[str, Tags] = {
    "ImageDescription": {tw.DESCRIPTION: ("ascii", "Patient Doe^Jane")},
    "Software": {tw.SOFTWARE: ("ascii", "Doe^Jane")},
    "DateTime": {306: ("ascii", "Doe^Jane 1999:12:31")},
    "Artist": {315: ("ascii", "Doe^Jane")},
    "XMP": {tw.XMP: ("undefined", b"<x>Doe^Jane</x>")},
    "UniqueCameraModel": {50708: ("ascii", "Doe^Jane")},
    "CameraSerialNumber": {50735: ("ascii", "SERIAL Doe^Jane")},
    "65000": {65000: ("ascii", "Doe^Jane")},
    "65001": {65001: ("short", np.frombuffer(b"Doe^Jane", "<u2"))},
    "TargetPrinter": {337: ("ascii", "Doe^Jane")},
    "ReferenceBlackWhite": {532: ("ascii", "Doe^Jane")},
}
"""Tags with a name in them; the last is a tag that stays where its value is a number."""


@pytest.mark.parametrize("place", ["base", "level", "sub", "label"])
@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("form", [TiffForm(), BIG], ids=["classic", "big"])
def test_tags_go_from_every_directory(
    tmp_path: Path, place: str, name: str, form: TiffForm
) -> None:
    source, copy = tmp_path / "slide.tiff", tmp_path / "copy.tiff"
    levels = pyramid(picture())
    planted: dict[str, Tags] = {"base": {}, "level": {}, "sub": {}, "label": {}}
    planted[place] = PLANTED[name]
    reduced: Tags = {tw.SUBFILE: ("long", [1])}
    with source.open("wb") as stream:
        stream.write(b"\0" * form.header_size)
        base, _ = image(stream, levels[0], resolution(MPP) | planted["base"])
        level, _ = image(stream, levels[1], reduced | planted["level"])
        sub, _ = image(stream, levels[2], reduced | planted["sub"])
        base.subs = [sub]
        level.subs = [image(stream, levels[2], reduced | PLANTED[name])[0]]
        label, parts = image(stream, label_pixels((200, 300, 3)), planted["label"])
        stream.write(b"left behind by Doe^Jane")
        tw.write_directories(stream, [base, level, label], form)
        stream.write(b"behind all Doe^Jane")
    report = deidentify(source, copy)
    assert len(report.images) == 2
    assert (name in report.fields) == (place != "label")
    assert not any("Doe" in field for field in report.fields)
    assert NAME in content(source)
    assert NAME not in content(copy)
    assert all(part[:32] not in content(copy) for part in parts)
    assert_same_pixels(source, copy)
    with openslide.OpenSlide(copy) as handle:
        assert handle.properties["openslide.mpp-x"].startswith("0.5")


@pytest.mark.parametrize("begin", [0, 1], ids=["same-size", "smaller"])
def test_another_image_of_the_same_shape(begin: int, tmp_path: Path) -> None:
    """It goes with its levels; of the same size it may be a scene, which no one should miss."""
    source, copy = tmp_path / "slide.tiff", tmp_path / "copy.tiff"
    levels, reduced = pyramid(picture()), {tw.SUBFILE: ("long", [1])}
    with source.open("wb") as stream:
        stream.write(b"\0" * 8)
        chain = [
            image(stream, level, reduced if k else resolution(MPP))
            for k, level in enumerate(levels)
        ]
        others = [
            image(stream, label_pixels(level.shape), reduced if k else {})
            for k, level in enumerate(levels[begin:])
        ]
        tw.write_directories(stream, [directory for directory, _ in chain + others], TiffForm())
    if not begin:
        with pytest.raises(UnsupportedSlide, match=r"further picture \(701 x 563 px\)") as caught:
            deidentify(source, copy)
        assert caught.value.code == "further-pictures"
        assert not copy.exists()
        return
    assert deidentify(source, copy).images == ("image",) * 2
    assert all(part[:32] not in content(copy) for _, parts in others for part in parts)
    assert_same_pixels(source, copy)


@pytest.mark.parametrize("offset", [2**40, 2**62, 2**64 - 1])
def test_tiles_beyond_the_end_of_the_file_are_refused(tmp_path: Path, offset: int) -> None:
    source, copy = tmp_path / "slide.tiff", tmp_path / "copy.tiff"
    with source.open("wb") as stream:
        stream.write(b"\0" * BIG.header_size)
        base, parts = image(stream, picture(), resolution(MPP))
        offsets = np.full(len(parts), 8, np.uint64)
        offsets[1:3] = offset - 2**20, offset
        base.tags[tw.TILE_OFFSETS] = ("long8", offsets)
        tw.write_directories(stream, [base], BIG)
    with pytest.raises(BrokenSlide):
        deidentify(source, copy)
    assert not copy.exists()


def test_optics_in_an_aperio_description_stay_and_hide_no_name(tmp_path: Path) -> None:
    source, copy = tmp_path / "slide.svs", tmp_path / "copy.svs"
    text = (
        "Aperio Image Library v12.0.0 Doe^Jane\r\n701x563 [0,0 701x563] (128x128) JPEG/RGB Q=70 "
        "Doe^Jane;Doe^Jane\r\n1x1"
        "|AppMag = 20|MPP = 0.5|Gamma = Doe^Jane|Doe^Jane = 1|Doe^Jane|ICC Profile = "
        "Doe^Jane|StripeWidth = 2040"
    )
    with source.open("wb") as stream:
        stream.write(b"\0" * 8)
        base, _ = image(stream, picture(), {tw.DESCRIPTION: ("ascii", text)})
        tw.write_directories(stream, [base], TiffForm())
    report = deidentify(source, copy)
    assert set(report.fields) == {"ICC Profile", "ImageDescription"}
    assert NAME not in content(copy)
    with tifffile.TiffFile(copy) as tiff:
        assert tiff.pages[0].description == (
            "Aperio Image Library v12.0.0\n701x563 [0,0 701x563] (128x128) JPEG/RGB Q=70|AppMag = "
            "20|MPP = 0.5|StripeWidth = 2040"
        )


# ---- real slides ---------------------------------------------------------------------------------


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "secrets"),
    [
        ("wsi/CMU-1-Small-Region.svs", [b"CPAPERIOCS", b"12/29/09", b"Barcode", b"User ="]),
        ("wsi/hamamatsu_test3-DAPI-2-387.ndpi", [b"2014", b"2013"]),
        ("wsi/OS-2-ndpi.ome.tif", [b"<Description", b"AcquisitionDate"]),
    ],
)
def test_real_tiffs(tmp_path: Path, name: str, secrets: list[bytes]) -> None:
    folder = shared_data()
    assert folder is not None
    copy = tmp_path / Path(name).name
    deidentify(folder / name, copy)
    with tifffile.TiffFile(copy) as tiff:
        texts = b"".join(
            tag.value.encode()
            for page in tiff.pages
            for tag in page.tags.values()
            if isinstance(tag.value, str)
        )
    assert not [secret for secret in secrets if secret in texts]
    with open_slide(str(folder / name)) as before, open_slide(str(copy)) as after:
        assert (before.mpp, before.levels) == (after.mpp, after.levels)
        np.testing.assert_array_equal(before.thumbnail(400), after.thumbnail(400))
