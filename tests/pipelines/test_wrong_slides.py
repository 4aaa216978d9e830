"""Wrong slides of every kind: one typed error that names slide, cause and remedy.

In bounded time and memory: each is used as the pipeline uses slides (`tests.fuzz.cases.use`), in a
process of its own with limits.
A small part of the fuzz campaign runs here too; `python -m tests.fuzz` is the whole of it.
"""

from __future__ import annotations

import gzip
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
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
from tests.support import dicom_slides, tiff_slides, vendor_slides
from tests.support import tiff_writer as tw
from tests.support.formats import picture
from tests.support.tiff_slides import (
    JPEG,
    RAW,
    RGB,
    YCBCR,
    TiffSlide,
    jpeg_ycc,
    pyramid,
    resolution,
)

Wrong = Callable[[Path], Path]


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


def file(content: bytes, name: str = "wrong.svs") -> Wrong:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def svs(folder: Path, **changed: object) -> Path:
    """A sound SVS save what is changed of `TiffSlide`."""
    description: tiff_slides.Tags = {
        tw.DESCRIPTION: ("ascii", "Aperio Image Library v12|AppMag = 20|MPP = 0.5")
    }
    how = {
        "encode": jpeg_ycc,
        "compression": JPEG,
        "photometric": YCBCR,
        "base": description,
    } | changed
    TiffSlide(**how).write(folder / "wrong.svs", pyramid(picture(), 2))  # type: ignore[arg-type]
    return folder / "wrong.svs"


def tagged(tags: tiff_slides.Tags) -> Wrong:
    """An SVS whose level 0 has other values of some tags."""
    description: tiff_slides.Tags = {
        tw.DESCRIPTION: ("ascii", "Aperio Image Library v12|AppMag = 20|MPP = 0.5")
    }
    return lambda folder: svs(folder, base=description | tags)


def described(text: str) -> Wrong:
    return tagged({tw.DESCRIPTION: ("ascii", text)})


def patched(make: Wrong, change: Callable[[bytearray], object]) -> Wrong:
    """A sound file whose bytes are changed."""

    def made(folder: Path) -> Path:
        path = make(folder)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)
        return path

    return made


def loop(content: bytearray) -> None:
    """The last directory names the first as its follower."""
    first = at = struct.unpack_from("<I", content, 4)[0]
    while True:
        after = at + 2 + 12 * struct.unpack_from("<H", content, at)[0]
        follower = struct.unpack_from("<I", content, after)[0]
        if not follower:
            struct.pack_into("<I", content, after, first)
            return
        at = follower


def cut(share: float) -> Callable[[bytearray], object]:
    return lambda content: content.__delitem__(slice(int(len(content) * share), None))


def shared_tile(**how: int) -> Wrong:
    return lambda folder: tiff_slides.write_shared_tile(folder / "wrong.tiff", **how)


def tile_without_tables(folder: Path) -> Path:
    return svs(folder, encode=lambda part: tiff_slides.abbreviated(jpeg_ycc(part)))


def deflate_bomb(folder: Path) -> Path:
    bomb = zlib.compress(bytes(2**26))
    return svs(folder, encode=lambda part: bomb, compression=tiff_slides.DEFLATE, photometric=RGB)


def jpeg2000_bomb(folder: Path) -> Path:
    """A code stream that claims 16,384 components: openjpeg would need 4 GB for them."""

    def encode(part: tiff_slides.Pixels) -> bytes:
        stream = bytearray(tiff_slides.j2k_rgb(part))
        struct.pack_into(">H", stream, 40, 16384)
        return bytes(stream)

    return svs(folder, encode=encode, compression=tiff_slides.APERIO_RGB, photometric=RGB)


def jpeg2000_cut(folder: Path) -> Path:
    """A code stream that lacks its second half but ends as it should."""

    def encode(part: tiff_slides.Pixels) -> bytes:
        stream = tiff_slides.j2k_rgb(part)
        return stream[: len(stream) // 2] + b"\xff\xd9"

    return svs(folder, encode=encode, compression=tiff_slides.APERIO_RGB, photometric=RGB)


def large_jpeg(folder: Path) -> Path:
    """Tiles that hold pictures of 16,000 x 16,000 px."""
    bomb = bytes(imagecodecs.jpeg8_encode(np.zeros((16000, 16000), np.uint8), level=1))
    return svs(folder, encode=lambda part: bomb)


def philips(text: str, other: str) -> Wrong:
    """A Philips TIFF in whose XML something is replaced by something as long."""

    def make(folder: Path) -> Path:
        path = folder / "wrong.tiff"
        tiff_slides.write_philips(path, picture())
        content = path.read_bytes()
        assert content.count(text.encode()) >= 1
        path.write_bytes(content.replace(text.encode(), other.encode()))
        return path

    return make


def ventana(text: bytes, other: bytes) -> Wrong:
    """A BIF in whose XML something is replaced by something as long."""

    def make(folder: Path) -> Path:
        vendor_slides.write_bif(folder / "wrong.bif", picture())
        content, count = re.subn(text, other, (folder / "wrong.bif").read_bytes())
        assert count
        (folder / "wrong.bif").write_bytes(content)
        return folder / "wrong.bif"

    return make


def ome(xml: str) -> Wrong:
    def make(folder: Path) -> Path:
        tags = resolution(0.5) | {tw.DESCRIPTION: ("ascii", xml)}
        slide = TiffSlide(encode=np.ndarray.tobytes, compression=RAW, base=tags)
        slide.write(folder / "wrong.ome.tiff", pyramid(picture()))
        return folder / "wrong.ome.tiff"

    return make


ONE_LARGE_TILE: tiff_slides.Tags = {
    **{tag: ("long", [2**16]) for tag in (tw.TILE_WIDTH, tw.TILE_HEIGHT)},
    **{tag: ("long", [100]) for tag in (tw.TILE_OFFSETS, tw.TILE_LENGTHS)},
}
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "ha">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    + ']><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">&j;</OME>'
)
"""XML whose entities grow to two gigabytes."""


def series(change: Callable[[Path], object], name: str = "dicom-jpeg") -> Wrong:
    """A DICOM series whose folder is changed."""

    def make(folder: Path) -> Path:
        dicom_slides.SERIES[name].write(folder / "wrong", picture())
        change(folder / "wrong")
        return folder / "wrong"

    return make


def element(**values: object) -> Callable[[Path], object]:
    """Change elements of level 0."""

    def change(folder: Path) -> None:
        dataset = pydicom.dcmread(folder / "level-0.dcm")
        for name, value in values.items():
            setattr(dataset, name, value)
        dataset.save_as(folder / "level-0.dcm")

    return change


def in_file(
    change: Callable[[bytearray], object], name: str = "level-0.dcm"
) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        change(content)
        (folder / name).write_bytes(content)

    return changed


def far_offset(content: bytearray) -> None:
    """The last offset of the basic table points behind the file."""
    at = content.find(b"\xe0\x7f\x10\x00OB") + 12
    length = struct.unpack_from("<I", content, at + 4)[0]
    struct.pack_into("<I", content, at + 8 + length - 4, 2**31)


def no_wsi(folder: Path) -> Path:
    """A CT slice."""
    path = folder / "wrong.dcm"
    dicom_slides.SERIES["dicom-raw"].write(folder / "series", picture())
    dataset = pydicom.dcmread(folder / "series" / "level-0.dcm")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.save_as(path)
    shutil.rmtree(folder / "series")
    return path


def dicom_bomb(folder: Path) -> Path:
    """A file that is compressed as a whole, a thousandth of what it grows to."""
    dicom_slides.SERIES["dicom-raw"].write(folder / "series", picture())
    dataset = pydicom.dcmread(folder / "series" / "level-0.dcm")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.PixelData = bytes(2**26)
    dataset.save_as(folder / "wrong.dcm")
    shutil.rmtree(folder / "series")
    return folder / "wrong.dcm"


def second_series(folder: Path) -> None:
    dataset = pydicom.dcmread(folder / "level-2.dcm")
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.save_as(folder / "level-2.dcm")


def all_grey(folder: Path) -> None:
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.save_as(path)


def labels(folder: Path) -> None:
    element(ImageType=["ORIGINAL", "PRIMARY", "LABEL"])(folder)
    for k in (1, 2):
        (folder / f"level-{k}.dcm").unlink()


def without_image_type(folder: Path) -> None:
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.ImageType
        dataset.save_as(path)


def white(folder: Path) -> Path:
    tiff_slides.WRITERS["tiff-jpeg"](folder / "wrong.tiff", np.full((500, 600, 3), 243, np.uint8))
    return folder / "wrong.tiff"


def no_tile(folder: Path) -> Path:
    return svs(folder, absent=frozenset({(0, 3)}))


def noise(folder: Path) -> Path:
    return svs(folder, encode=lambda part: b"\xff\xd8" + bytes(300))


def no_jpeg(folder: Path) -> Path:
    return svs(folder, encode=lambda part: bytes(300))


def grey(folder: Path) -> Path:
    return svs(folder, photometric=1, base={tw.SAMPLES: ("short", [1]), tw.BITS: ("short", [8])})


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
