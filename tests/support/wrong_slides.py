"""Makers of slides that are wrong in one way: damaged, incomplete, of a kind that is not read.

Each writes its slide into a folder and returns what to open.
"""

from __future__ import annotations

import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom

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


def file(content: bytes, name: str = "wrong.svs") -> Wrong:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def svs(folder: Path, **changed: object) -> Path:
    """A sound SVS except for the given changes of `TiffSlide`."""
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
