"""Wrong slides of every kind: one typed error that names slide, cause and remedy.

In bounded time and memory: each is used as the pipeline uses slides (`tests.fuzz.cases.use`), in a
process of its own with limits.
A small part of the fuzz campaign runs here too; `python -m tests.fuzz` is the whole of it.
"""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.slides import dicom
from pipelines.slides.errors import (
    BrokenSlide,
    ImplausibleResolution,
    MissingResolution,
    NoTissue,
    SlideError,
    SlideNotFound,
    UnsupportedSlide,
)
from pipelines.slides.geometry import Point
from pipelines.slides.opening import open_slide
from pipelines.slides.tiled import TiledSlide
from tests.fuzz.cases import MAX_MEMORY, MAX_SECONDS
from tests.fuzz.damage import UNDAMAGED
from tests.fuzz.specimens import FUZZED
from tests.fuzz.worker import Worker
from tests.support import dicom_slides
from tests.support import tiff_writer as tw
from tests.support.formats import picture
from tests.support.wrong_slides import (
    LAUGHS,
    ONE_LARGE_TILE,
    Wrong,
    all_grey,
    cut,
    deflate_bomb,
    described,
    dicom_bomb,
    element,
    far_offset,
    file,
    grey,
    in_file,
    jpeg2000_bomb,
    jpeg2000_cut,
    labels,
    large_jpeg,
    loop,
    no_jpeg,
    no_tile,
    no_wsi,
    noise,
    ome,
    patched,
    philips,
    second_series,
    series,
    shared_tile,
    svs,
    tagged,
    tile_without_tables,
    ventana,
    white,
    without_image_type,
)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of wrong slide.

    Attributes:
        make: writes one into a folder; returns what to open.
        error: what must be said.
        cause: words of the message.
    """

    make: Wrong
    error: type[SlideError]
    cause: str


# ---- how wrong slides are made -------------------------------------------------------------------


ROWS: dict[str, Row] = {
    "zero bytes": Row(make=file(b""), error=BrokenSlide, cause="empty file"),
    "a few bytes": Row(make=file(b"II*\0"), error=BrokenSlide, cause="only 4 bytes"),
    "a text": Row(
        make=file(b"not a slide " * 100), error=UnsupportedSlide, cause="not a whole-slide image"
    ),
    "zeros": Row(make=file(bytes(5000)), error=UnsupportedSlide, cause="not a whole-slide image"),
    "a compressed slide": Row(
        make=file(gzip.compress(bytes(range(256)) * 40)),
        error=UnsupportedSlide,
        cause="not a whole-slide",
    ),
    "a header and no more": Row(
        make=file(b"II*\0\x08\0\0\0" + bytes(200)),
        error=BrokenSlide,
        cause="holds no image",
    ),
    "cut in its tiles": Row(
        make=patched(svs, cut(0.3)), error=BrokenSlide, cause="can't be read|no image|truncated"
    ),
    "cut in its directories": Row(
        make=patched(svs, cut(0.999)), error=BrokenSlide, cause="can't be read|truncated|lists"
    ),
    "a loop of directories": Row(
        make=patched(svs, loop), error=BrokenSlide, cause="truncated|header|directories"
    ),
    "a missing tile": Row(make=no_tile, error=BrokenSlide, cause="no data for"),
    "tiles without tables": Row(
        make=tile_without_tables, error=BrokenSlide, cause="can't be decoded"
    ),
    "tiles of noise": Row(make=noise, error=BrokenSlide, cause="can't be decoded"),
    "tiles that are no JPEG": Row(make=no_jpeg, error=BrokenSlide, cause="JPEG start marker"),
    "a width of 2^31": Row(
        make=tagged({tw.WIDTH: ("long", [2**31])}), error=BrokenSlide, cause="more than any scanner"
    ),
    "tiles of 2^16": Row(
        make=tagged(ONE_LARGE_TILE), error=BrokenSlide, cause="more than any scanner"
    ),
    "no width": Row(
        make=tagged({tw.WIDTH: ("long", [0])}),
        error=BrokenSlide,
        cause="can't be read|lists|no image",
    ),
    "another number of tiles": Row(
        make=tagged({tw.HEIGHT: ("long", [5000])}), error=BrokenSlide, cause="lists 30 tiles where"
    ),
    "tiles behind the end": Row(
        make=tagged({tw.TILE_OFFSETS: ("long", [2**31] * 30)}),
        error=BrokenSlide,
        cause="truncated: .* reach to byte 2147",
    ),
    "a tile of 4 GB": Row(
        make=tagged({tw.TILE_LENGTHS: ("long", [2**32 - 1] * 30)}),
        error=BrokenSlide,
        cause="truncated|bytes, more than",
    ),
    "a bomb of zeros": Row(
        make=deflate_bomb, error=BrokenSlide, cause="holds more bytes where 49152 are needed"
    ),
    "a bomb of one tile": Row(
        make=shared_tile(width=2**22, height=2**22, size=0),
        error=BrokenSlide,
        cause="the same bytes for most of its tiles",
    ),
    "a smaller bomb of one tile": Row(
        make=shared_tile(width=2**20, height=2**20, size=0),
        error=BrokenSlide,
        cause="the same bytes for most of its tiles",
    ),
    "too large for an overview": Row(
        make=shared_tile(width=2**17, height=2**17, size=2**20),
        error=BrokenSlide,
        cause="no level for an overview smaller than 131072 x 131072 px; export it with all levels",
    ),
    "a bomb of components": Row(
        make=jpeg2000_bomb, error=BrokenSlide, cause="not a colour JPEG 2000"
    ),
    "a bomb of pixels": Row(
        make=large_jpeg, error=BrokenSlide, cause="bytes, more than|can't be decoded"
    ),
    "JPEG 2000 cut off": Row(make=jpeg2000_cut, error=BrokenSlide, cause="can't be decoded"),
    "no mpp": Row(
        make=described("Aperio Image Library v12|AppMag = 20"),
        error=MissingResolution,
        cause="no mpp.*give its mpp",
    ),
    "an mpp of 0": Row(
        make=described("Aperio Image Library|MPP = 0"),
        error=MissingResolution,
        cause="no mpp.*give its mpp",
    ),
    "an mpp that is not a number": Row(
        make=described("Aperio Image Library|MPP = half"),
        error=MissingResolution,
        cause=r"no usable mpp in its metadata \(half um\)",
    ),
    "an mpp of 499": Row(
        make=described("Aperio Image Library|MPP = 499"),
        error=ImplausibleResolution,
        cause="mpp of 499, outside 0.05 to 100",
    ),
    "an infinite mpp": Row(
        make=described("Aperio Image Library|MPP = inf"),
        error=MissingResolution,
        cause=r"no usable mpp in its metadata \(inf um\)",
    ),
    "greyscale": Row(make=grey, error=UnsupportedSlide, cause="greyscale"),
    "OME-XML that breaks off": Row(
        make=ome("<OME><Image></OME>"), error=BrokenSlide, cause="ParseError|can't be read"
    ),
    "OME-XML that explodes": Row(make=ome(LAUGHS), error=BrokenSlide, cause="can't be read"),
    "OME with an absurd mpp": Row(
        make=ome(
            '<OME xmlns="o"><Image><Pixels PhysicalSizeX="0.5" PhysicalSizeXUnit="m"/></Image>'
            "</OME>"
        ),
        error=ImplausibleResolution,
        cause="mpp of 500000",
    ),
    "Philips without spacings": Row(
        make=philips("DICOM_PIXEL_SPACING", "DICOM_PIXEL_SPICING"), error=BrokenSlide, cause="read"
    ),
    "Philips with a spacing of 0": Row(
        make=philips('"0.000500"', '"0.000000"'), error=BrokenSlide, cause="mpp|read"
    ),
    "Philips whose levels grow": Row(
        make=philips('"0.001000"', '"0.000100"'), error=BrokenSlide, cause="does not fit level 1"
    ),
    "Philips with two scans": Row(make=philips(">WSI<", ">WSX<"), error=BrokenSlide, cause="read"),
    "Ventana with too many rows": Row(
        make=ventana(rb'NumRows="\d"', b'NumRows="9"'),
        error=BrokenSlide,
        cause="area of . x 9 tiles, more than",
    ),
    "Ventana with too fine a level": Row(
        make=ventana(b"level=1 mag=10", b"level=1 mag=19"),
        error=BrokenSlide,
        cause="area of . x . tiles, more than",
    ),
    "an empty folder": Row(
        make=lambda folder: folder, error=SlideNotFound, cause="no DICOM whole-slide image"
    ),
    "no DICOM WSI": Row(
        make=no_wsi,
        error=UnsupportedSlide,
        cause=r"not a whole-slide image \(CT Image Storage\)",
    ),
    "a DICOM bomb": Row(make=dicom_bomb, error=UnsupportedSlide, cause="deflated as a whole"),
    "two DICOM series": Row(
        make=series(second_series), error=UnsupportedSlide, cause="holds 2 DICOM series"
    ),
    "DICOM without mpp": Row(
        make=series(element(SharedFunctionalGroupsSequence=[pydicom.Dataset()])),
        error=MissingResolution,
        cause="no mpp",
    ),
    "DICOM of labels": Row(
        make=series(labels), error=UnsupportedSlide, cause="only DICOM images that are LABEL"
    ),
    "DICOM without ImageType": Row(
        make=series(without_image_type), error=UnsupportedSlide, cause="without ImageType"
    ),
    "DICOM with a wrong number of frames": Row(
        make=series(element(NumberOfFrames=3)), error=BrokenSlide, cause="3 frames"
    ),
    "DICOM of 2^31 px": Row(
        make=series(element(TotalPixelMatrixColumns=2**31)),
        error=BrokenSlide,
        cause="frames|more than any scanner",
    ),
    "sparse DICOM of 2^31 px": Row(
        make=series(
            element(TotalPixelMatrixColumns=2**31, TotalPixelMatrixRows=2**31), "dicom-sparse"
        ),
        error=BrokenSlide,
        cause="a size of .* frames",
    ),
    "DICOM with a far offset": Row(
        make=series(in_file(far_offset)), error=BrokenSlide, cause="break off|truncated|rise"
    ),
    "DICOM cut off": Row(
        make=series(in_file(cut(0.6))), error=BrokenSlide, cause="break off|truncated|read"
    ),
    "raw DICOM cut off": Row(
        make=series(in_file(cut(0.6)), "dicom-raw"), error=BrokenSlide, cause="truncated|read"
    ),
    "DICOM cut in its header": Row(
        make=series(in_file(cut(0.01))), error=BrokenSlide, cause="read"
    ),
    "greyscale DICOM": Row(
        make=series(all_grey),
        error=UnsupportedSlide,
        cause="holds 3 DICOM files but no slide; the first .* 1 samples per pixel",
    ),
    "a white slide": Row(make=white, error=NoTissue, cause="no stained tissue"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_wrong_slide_is_one_clear_error(row: Row, tmp_path: Path, worker: Worker) -> None:
    path = row.make(tmp_path)
    outcome = worker.use(str(path))
    assert outcome.result == row.error.__name__, outcome.detail
    begin, rest = outcome.detail.split(f"{row.error.__name__}: slide {path.name} ")
    cause, _, remedy = rest.rpartition("; ")
    assert (begin, bool(cause), len(remedy) > 10) == ("", True, True)
    assert re.search(row.cause, outcome.detail), outcome.detail
    assert outcome.seconds < MAX_SECONDS
    assert outcome.megabytes < MAX_MEMORY / 2**20


def test_the_slides_that_rows_change_open_unchanged(tmp_path: Path, worker: Worker) -> None:
    """What rows are made from opens, so that they fail for what is changed."""
    assert open_slide(str(shared_tile(width=2**13, height=2**12, size=0)(tmp_path))).thumbnail(
        64
    ).shape == (32, 64, 3)
    assert worker.use(str(svs(tmp_path))).result == "opened"
    assert worker.use(str(series(lambda folder: None)(tmp_path))).result == "opened"


@pytest.mark.parametrize(
    ("make", "mpp"),
    [
        (described("Aperio Image Library v12|AppMag = 20"), 0.5),
        (described("Aperio Image Library v12"), None),
    ],
)
def test_objective_is_taken_for_mpp_only_when_asked(
    make: Wrong, mpp: float | None, tmp_path: Path
) -> None:
    path = str(make(tmp_path))
    with pytest.raises(MissingResolution, match="give its mpp"):
        _ = open_slide(path).mpp
    if mpp is not None:
        assert open_slide(path, mpp_from_objective=True).mpp == mpp
    assert open_slide(path, mpp=0.4, mpp_from_objective=True).mpp == 0.4


@pytest.mark.parametrize("name", FUZZED)
def test_fuzzed_slides_open_before_they_are_damaged(name: str, worker: Worker) -> None:
    assert worker.run(name, UNDAMAGED).result == "opened"


@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(1, 2**31))
def test_damaged_at_random(name: str, seed: int, worker: Worker) -> None:
    outcome = worker.run(name, seed)
    assert not outcome.is_bug, f"python -m tests.fuzz --format {name} --seed {seed}: {outcome}"


def damage_frame(folder: Path) -> None:
    """Zero the second half of a frame in the middle of level 0."""
    content = bytearray((folder / "level-0.dcm").read_bytes())
    at = content.find(b"\xe0\x7f\x10\x00OB") + 12
    for _ in range(9):
        at += 8 + struct.unpack_from("<I", content, at + 4)[0]
    length = struct.unpack_from("<I", content, at + 4)[0]
    content[at + 8 + length // 2 : at + 8 + length] = bytes(length - length // 2)
    (folder / "level-0.dcm").write_bytes(content)


@pytest.mark.parametrize("name", ["dicom-jpeg", "dicom-jpeg2000", "dicom-jpegls"])
@pytest.mark.parametrize("direct", [True, False])
def test_damaged_dicom_frame_is_loud(
    name: str, direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through wsidicom too, whose own decoder shows grey where libjpeg only warns."""
    if not direct:
        monkeypatch.setattr(dicom, "tile_indexes", lambda *given: None)
    with open_slide(str(series(damage_frame, name)(tmp_path))) as slide:
        assert isinstance(slide, TiledSlide) == direct
        with pytest.raises(BrokenSlide, match="can't be decoded"):
            slide.read_region(Point(0, 0), 0, slide.size)


def cut_before_pixels(content: bytearray) -> None:
    del content[content.find(b"\xe0\x7f\x10\x00OB") :]


def test_damaged_neighbour_of_another_series_is_ignored(tmp_path: Path) -> None:
    """In a folder of many slides; a damaged level of the slide's own series is one."""
    path = series(lambda folder: None)(tmp_path)
    dicom_slides.SERIES["dicom-raw"].write(tmp_path / "other", picture())
    dataset = pydicom.dcmread(tmp_path / "other" / "level-0.dcm")
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.save_as(path / "other.dcm")
    in_file(cut(0.01), "other.dcm")(path)
    assert len(open_slide(str(path / "level-0.dcm")).levels) == 3
    in_file(cut_before_pixels, "level-2.dcm")(path)
    with pytest.raises(BrokenSlide, match=r"level-0\.dcm .*level-2\.dcm breaks off"):
        open_slide(str(path / "level-0.dcm"))


@pytest.mark.parametrize(
    ("elements", "remark"),
    [
        ({"TotalPixelMatrixFocalPlanes": 3}, "has 3 focal planes, of which one was read"),
        ({"NumberOfOpticalPaths": 2}, "has 2 optical paths, of which one was read"),
    ],
)
def test_focal_planes_and_optical_paths_of_dicom_are_remarked(
    elements: dict[str, object], remark: str, tmp_path: Path
) -> None:
    path = series(element(**elements))(tmp_path)
    assert dicom.find_series(path.as_uri()).facts.remarks == (remark,)
