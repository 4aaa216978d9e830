"""Undamaged slides of every format, and where their structures are.

Structures are headers, directories, tag values, XML, offset tables, DICOM elements and the heads of
tiles.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pydicom
import tifffile

from tests.support.formats import picture, write_slide

FUZZED = [
    "svs-jpeg",
    "svs-33003",
    "svs-33005",
    "bigtiff-jpeg",
    "tiff-deflate",
    "tiff-lzw",
    "tiff-raw",
    "tiff-rgba",
    "ome-tiff",
    "philips",
    "dicom-jpeg",
    "dicom-jpeg2000",
    "dicom-jpegls",
    "dicom-raw",
    "dicom-sparse",
    "ndpi",
    "mirax",
    "scn",
    "bif",
    "trestle",
]
"""Formats of the campaign. A format's place in this list is part of its random seed."""

Structure = tuple[int, int]
"""Offset and length of a structure in a file."""


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """An undamaged slide.

    Attributes:
        files: content by path below the slide's folder.
        opened: path that `open_slide` is given.
        structures: structures of each file.
    """

    files: dict[str, bytes]
    opened: str
    structures: dict[str, list[Structure]]


@lru_cache(maxsize=1)
def specimen(name: str) -> Specimen:
    """The undamaged slide of a format."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_slide(name, Path(folder), picture(540, 520))
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(Path(folder).rglob("*"))
            if file.is_file()
        }
        opened = path.relative_to(folder).as_posix()
    return Specimen(
        files=files,
        opened=opened,
        structures={name: list(_structures(name, content)) for name, content in files.items()},
    )


def _structures(path: str, content: bytes) -> Iterator[Structure]:
    if content[:2] in (b"II", b"MM"):
        return _tiff_structures(path, content)
    if content[128:132] == b"DICM":
        return _dicom_structures(content)
    starts = range(0, min(len(content), 4000), 16)
    return iter([(start, min(16, len(content) - start)) for start in starts])


def _tiff_structures(path: str, content: bytes) -> Iterator[Structure]:
    yield 0, 16
    with tifffile.TiffFile(io.BytesIO(content), name=path) as tiff:
        for page in [sub for main in tiff.pages for sub in (main, *(main.pages or ()))]:
            yield page.offset, 8
            for tag in page.tags:
                yield tag.offset, tiff.tiff.tagsize
                yield tag.valueoffset, min(tag.valuebytecount, 64)
            yield from ((offset, 40) for offset in page.dataoffsets if offset)


def _dicom_structures(content: bytes) -> Iterator[Structure]:
    stream = io.BytesIO(content)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True)
    pixels = stream.tell()
    for element in (*dataset.file_meta, *dataset.iterall()):
        if element.file_tell is not None and element.file_tell < pixels:
            yield max(0, element.file_tell - 12), 12 + min(32, len(str(element.value)))
    yield pixels, 40
    item = pixels + 12
    while content[item : item + 4] == b"\xfe\xff\x00\xe0":
        yield item, 48
        item += 8 + int.from_bytes(content[item + 4 : item + 8], "little")
