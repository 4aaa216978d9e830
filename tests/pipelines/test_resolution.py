"""Micrometres per pixel: which value a slide gets, from every place where a format records one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile

from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.slides.deidentify import deidentify
from pipelines.slides.errors import (
    AnisotropicResolution,
    ImplausibleResolution,
    MissingResolution,
    SlideError,
)
from pipelines.slides.opening import open_slide
from pipelines.slides.resolution import MAX_ANISOTROPY, MppPolicy, RecordedMpp
from tests.support import dicom_slides, tiff_slides, vendor_slides
from tests.support import tiff_writer as tw
from tests.support.formats import picture
from tests.support.tiff_slides import DEFLATE, MPP, Tags, TiffSlide, deflate, ome_xml

SIDE = 256
UM = "\u00b5m"
"""Micrometre with MICRO SIGN, as OME-XML has it; Greek mu (U+03BC) looks the same."""


def tiff(path: Path, tags: Tags) -> Path:
    how = TiffSlide(encode=deflate, compression=DEFLATE, base=tags)
    how.write(path, [np.full((SIDE, SIDE, 3), 200, np.uint8)])
    return path


def svs(folder: Path, fields: str) -> Path:
    text = f"Aperio Image Library v12|AppMag = 20|{fields}"
    return tiff(folder / "slide.svs", {tw.DESCRIPTION: ("ascii", text)})


def ome(folder: Path, **attributes: object) -> Path:
    xml = ome_xml([{"SizeX": SIDE, "SizeY": SIDE, **attributes}])
    return tiff(folder / "slide.ome.tiff", {tw.DESCRIPTION: ("ascii", xml)})


def tagged(folder: Path, x: float | None, y: float | None, unit: int = 3) -> Path:
    """A TIFF whose resolution tags have these micrometres per pixel."""
    tags: Tags = {tw.RESOLUTION_UNIT: ("short", [unit])}
    for tag, mpp in ((tw.X_RESOLUTION, x), (tw.Y_RESOLUTION, y)):
        if mpp is not None:
            tags |= {tag: ("ratio", [round({2: 2.54e7, 3: 1e7}[unit] / mpp), 1000])}
    return tiff(folder / "slide.tiff", tags)


def philips(folder: Path, rows: str, columns: str) -> Path:
    path = folder / "slide.tiff"
    tiff_slides.write_philips(path, picture())
    old = f'"{MPP / 1000:.6f}" "{MPP / 1000:.6f}"'.encode()
    content = path.read_bytes()
    assert content.count(old) == 2
    path.write_bytes(content.replace(old, f'"{rows}" "{columns}"'.encode()))
    return path


def dicom(folder: Path, spacing: list[float]) -> Path:
    path = folder / "series"
    dicom_slides.SERIES["dicom-jpeg"].write(path, picture())
    for file in path.iterdir():
        dataset = pydicom.dcmread(file)
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = spacing
        dataset.save_as(file)
    return path


def mirax(folder: Path, x: float, y: float) -> Path:
    vendor_slides.write_mirax(folder / "slide.mrxs", picture())
    ini = folder / "slide" / "Slidedat.ini"
    text = ini.read_bytes()
    for axis, mpp in ((b"X", x), (b"Y", y)):
        text = text.replace(b"PIXEL_%s = %.1f\n" % (axis, MPP), b"PIXEL_%s = %g\n" % (axis, mpp))
    ini.write_bytes(text)
    return folder / "slide.mrxs"


def ndpi(folder: Path, x: float, y: float) -> Path:
    path = folder / "slide.ndpi"
    vendor_slides.write_ndpi(path, picture())
    with tifffile.TiffFile(path) as parsed:
        places = [parsed.pages[0].tags[tag].valueoffset for tag in ("XResolution", "YResolution")]
    content = bytearray(path.read_bytes())
    for place, mpp in zip(places, (x, y), strict=True):
        content[place : place + 4] = round(1e7 / mpp).to_bytes(4, "little")
    path.write_bytes(content)
    return path


ANISOTROPIC: dict[str, Callable[[Path], Path]] = {
    "TIFF tags": lambda folder: tagged(folder, 0.25, 0.5),
    "TIFF tags in inches": lambda folder: tagged(folder, 0.25, 0.5, unit=2),
    "OME": lambda folder: ome(folder, PhysicalSizeX=0.25, PhysicalSizeY=0.5),
    "OME in two units": lambda folder: ome(
        folder,
        PhysicalSizeX=0.25,
        PhysicalSizeXUnit=UM,
        PhysicalSizeY=500,
        PhysicalSizeYUnit="nm",
    ),
    "Philips": lambda folder: philips(folder, "0.000500", "0.000250"),
    "DICOM": lambda folder: dicom(folder, [0.0005, 0.00025]),
    "OpenSlide, MIRAX": lambda folder: mirax(folder, 0.25, 0.5),
    "OpenSlide, NDPI": lambda folder: ndpi(folder, 0.25, 0.5),
}
IN_A_WRONG_UNIT: dict[str, Callable[[Path], Path]] = {
    "OME": lambda folder: ome(folder, PhysicalSizeX=250, PhysicalSizeY=500),
    "DICOM": lambda folder: dicom(folder, [0.5, 0.25]),
    "OpenSlide, MIRAX": lambda folder: mirax(folder, 250, 500),
}


@pytest.mark.parametrize("make", ANISOTROPIC.values(), ids=ANISOTROPIC)
def test_mpp_that_differs_by_axis_is_refused(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """A given mpp does not make the pixels square."""
    path = str(make(tmp_path))
    for given in (None, 0.25):
        with open_slide(path, mpp=given) as slide:
            with pytest.raises(AnisotropicResolution, match=r"0\.25 x 0\.5 um") as caught:
                _ = slide.mpp
            assert caught.value.code == "anisotropic-mpp"
            with pytest.raises(AnisotropicResolution):
                index_slide(slide, PatchSpec(size=64), organisation="x")


@pytest.mark.parametrize("make", IN_A_WRONG_UNIT.values(), ids=IN_A_WRONG_UNIT)
def test_axes_in_a_wrong_unit_must_be_square_too(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A given mpp replaces the unit; the ratio of the axes stays."""
    path = str(make(tmp_path))
    for given in (None, 0.25):
        with (
            open_slide(path, mpp=given, default_mpp=given) as slide,
            pytest.raises(AnisotropicResolution, match=r"250 x 500 um"),
        ):
            _ = slide.mpp


def test_axes_within_the_tolerance_are_square(tmp_path: Path) -> None:
    """NDPI scanners record axes that differ by 0.3 %."""
    path = ndpi(tmp_path, 0.4564, 0.4551)
    assert open_slide(str(path)).mpp == pytest.approx(0.4564, rel=1e-4)
    beyond = 1.001 * (1 + MAX_ANISOTROPY)
    with pytest.raises(AnisotropicResolution):
        MppPolicy().decide("a", RecordedMpp(x=0.25, y=0.25 * beyond), None)
    with pytest.raises(AnisotropicResolution):
        MppPolicy().decide("a", RecordedMpp(x=0.25 * beyond, y=0.25), None)


def test_one_axis_alone_stands_for_both(tmp_path: Path) -> None:
    assert open_slide(str(tagged(tmp_path, 0.25, None))).mpp == pytest.approx(0.25)
    assert open_slide(str(ome(tmp_path, PhysicalSizeY=0.5))).mpp == 0.5


@pytest.mark.parametrize(
    ("size", "unit"),
    [
        ("0.25", "\u03bcm"),
        ("0.25", UM),
        ("0.25", "um"),
        ("250", "nm"),
        ("2500", "\u00c5"),
        ("0.00025", "mm"),
        ("9.84252e-06", "in"),
        ("0.00984252", "thou"),
        ("2.5e-10", "km"),
        ("2.5e-9", "hm"),
        ("2.5e-8", "dam"),
    ],
)
def test_units_of_ome_are_understood(size: str, unit: str, tmp_path: Path) -> None:
    units = {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    path = ome(tmp_path, PhysicalSizeX=size, PhysicalSizeY=size, **units)
    assert open_slide(str(path)).mpp == pytest.approx(0.25, rel=1e-5)
    deidentify(path, tmp_path / "clean.ome.tiff")
    assert open_slide(str(tmp_path / "clean.ome.tiff")).mpp == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("shown", ["0.25um", "0.25 um", "0.25 0.5 um"])
def test_an_mpp_that_is_not_a_number_has_its_unit_once(shown: str) -> None:
    recorded = RecordedMpp.of_text(shown, shown, units=("um", "um"))
    remark = f"has an mpp in its metadata ({shown}) that can't be read and was not used"
    assert MppPolicy().remark(recorded) == remark


def test_a_unit_that_is_not_a_length_is_named(tmp_path: Path) -> None:
    """ImageJ writes so if no scale is set."""
    units = {"PhysicalSizeXUnit": "pixel", "PhysicalSizeYUnit": "pixel"}
    path = str(ome(tmp_path, PhysicalSizeX=1, PhysicalSizeY=1, **units))
    with pytest.raises(MissingResolution, match=r"no usable mpp in its metadata \(1 pixel\)"):
        _ = open_slide(path).mpp
    assert open_slide(path, mpp=0.3).mpp == 0.3


def test_an_axis_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    path = ome(tmp_path, PhysicalSizeX=0.25, PhysicalSizeY=1, PhysicalSizeYUnit="pixel")
    with open_slide(str(path)) as slide:
        assert slide.mpp == 0.25
        [remark] = slide.remarks
        assert "(1 pixel)" in remark


def test_a_decimal_comma_is_read(tmp_path: Path) -> None:
    """ImageScope writes so in a French locale; OpenSlide reads it too."""
    path = svs(tmp_path, "MPP = 0,499000")
    assert open_slide(str(path)).mpp == 0.499
    deidentify(path, tmp_path / "clean.svs")
    assert open_slide(str(tmp_path / "clean.svs")).mpp == 0.499


WRONG: dict[str, tuple[Callable[[Path], Path], type[SlideError], str]] = {
    "SVS too small": (
        lambda folder: svs(folder, "MPP = 0.025"),
        ImplausibleResolution,
        "0.025 x 0.025",
    ),
    "SVS infinite": (lambda folder: svs(folder, "MPP = inf"), MissingResolution, "inf um"),
    "SVS not a number": (lambda folder: svs(folder, "MPP = half"), MissingResolution, "half um"),
    "SVS negative": (lambda folder: svs(folder, "MPP = -0.25"), MissingResolution, "-0.25 um"),
    "OME zero": (
        lambda folder: ome(folder, PhysicalSizeX="0.0", PhysicalSizeY="0.0"),
        MissingResolution,
        "",
    ),
    "OME too large": (
        lambda folder: ome(folder, PhysicalSizeX=250, PhysicalSizeY=250),
        ImplausibleResolution,
        "250 x 250",
    ),
    "OME not a number": (
        lambda folder: ome(folder, PhysicalSizeX="x", PhysicalSizeY="x"),
        MissingResolution,
        f"x {UM}",
    ),
    "OME wrong on one axis": (
        lambda folder: ome(folder, PhysicalSizeX=0.25, PhysicalSizeY=250),
        ImplausibleResolution,
        "0.25 x 250",
    ),
    "TIFF printed at 72 dpi": (lambda folder: tagged(folder, 352.8, 352.8), MissingResolution, ""),
    "DICOM too small": (
        lambda folder: dicom(folder, [1e-6, 1e-6]),
        ImplausibleResolution,
        "0.001 x 0.001",
    ),
    "MIRAX too large": (
        lambda folder: mirax(folder, 500, 500),
        ImplausibleResolution,
        "500 x 500",
    ),
}
"""Slides, the error without a given mpp, and what of the metadata is reported with one."""


@pytest.mark.parametrize(("make", "error", "reported"), WRONG.values(), ids=WRONG)
def test_a_given_mpp_replaces_one_that_cannot_be_true(
    make: Callable[[Path], Path], error: type[SlideError], reported: str, tmp_path: Path
) -> None:
    path = str(make(tmp_path))
    with open_slide(path) as slide, pytest.raises(error, match="micrometres per pixel"):
        _ = slide.mpp
    for slide in (open_slide(path, mpp=0.25), open_slide(path, default_mpp=0.25)):
        assert slide.mpp == 0.25
        assert [f"({reported})" in remark for remark in slide.remarks] == [True] * bool(reported)


def test_order_is_given_then_metadata_then_default_then_objective(tmp_path: Path) -> None:
    with_mpp = str(svs(tmp_path, "MPP = 0.5"))
    assert open_slide(with_mpp, mpp=0.25, default_mpp=0.3, mpp_from_objective=True).mpp == 0.25
    assert open_slide(with_mpp, default_mpp=0.3, mpp_from_objective=True).mpp == 0.5
    without = str(svs(tmp_path, "Left = 1"))
    assert open_slide(without, default_mpp=0.3, mpp_from_objective=True).mpp == 0.3
    assert open_slide(without, mpp_from_objective=True).mpp == 0.5
    with pytest.raises(MissingResolution):
        _ = open_slide(without).mpp


@pytest.mark.parametrize("value", [0.0, -0.25, 0.01, 300.0, float("nan"), float("inf")])
def test_a_given_mpp_must_be_plausible(value: float, tmp_path: Path) -> None:
    path = str(svs(tmp_path, "MPP = 0.5"))
    with pytest.raises(ImplausibleResolution, match=r"slide\.svs .*outside 0\.05 to 100"):
        open_slide(path, mpp=value)
    with pytest.raises(ImplausibleResolution):
        open_slide(path, default_mpp=value)
