"""The direct reader of tiled TIFF: Aperio SVS, OME-TIFF, Philips TIFF, generic (Big)TIFF.

tifffile parses the directories once; from there on a slide is its tile index (`tiled`). Which
directories are the slide is decided in `tiff_pages`, what the metadata say in `tiff_facts`. What
can't be read in place is left to OpenSlide: formats of their own wholly, of other files the pixels.

Specs: TIFF 6.0, BigTIFF; Aperio's compressions 33003 and 33005 are JPEG 2000.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np
import tifffile

from pipelines.slides import jpeg, tiff_pages
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Size
from pipelines.slides.slide import OpenOptions, SlideFacts
from pipelines.slides.source import SlideFile
from pipelines.slides.tiff_facts import philips_facts, tiff_facts
from pipelines.slides.tiled import TiledSlide, TileIndex, TileStore
from pipelines.slides.tiles import TileGrid

CODECS = {
    1: "raw",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32946: "deflate",
    33003: "jpeg2000-ycc",
    33005: "jpeg2000",
    34712: "jpeg2000",
}
"""TIFF compressions that are read in place."""
LEFT_TO_OPENSLIDE = {32773, 50000}
"""Further compressions that OpenSlide's libtiff decodes: PackBits and Zstandard."""


def open_direct(file: SlideFile, options: OpenOptions) -> TiledSlide | SlideFacts | None:
    """Open a TIFF by its tile index.

    Returns:
        The slide; its facts if OpenSlide is to read its pixels, which it does of the same pages;
        None if all of it is left to OpenSlide.

    Raises:
        BrokenSlide: the header or index is corrupt, or the file ends before its tiles do.
        UnsupportedSlide: greyscale, pixels or a compression that are not read, a largest picture
            in strips, pictures that are stored turned, or pixels that are not read in place in
            pages of which OpenSlide would take others.
    """
    try:
        with file.open() as stream, tifffile.TiffFile(stream, name=file.name) as tiff:
            return _open_parsed(file, tiff, options)
    except tiff_pages.DAMAGE as error:
        cause = f"has a TIFF header that can't be read ({type(error).__name__})"
        remedy = "it may be truncated: copy or export it again"
        raise BrokenSlide(file.name, cause, remedy) from error


def _open_parsed(
    file: SlideFile, tiff: tifffile.TiffFile, options: OpenOptions
) -> TiledSlide | SlideFacts | None:
    tiff_pages.check_count(file.name, tiff)
    pages = [page for page in tiff_pages.walk(tiff) if page.is_tiled]
    shown = pages or tiff_pages.walk(tiff)
    largest = max(shown, key=lambda page: page.imagewidth * page.imagelength)
    if _is_left_to_openslide(tiff, largest):
        _check_indexes(file, pages)
        return None
    if not pages:
        raise tiff_pages.in_strips(file.name, largest)
    tiff_pages.refuse_truncated(file.name, file.size, tiff)
    base = tiff_pages.base_page(file.name, tiff, pages)
    tiff_pages.check_orientation(file.name, base)
    _check_pixels(file.name, base)
    philips = str(base.tags.valueof("Software", default="")).startswith("Philips")
    levels = _philips_levels(pages) if philips else tiff_pages.pyramid(tiff, base, pages)
    names = [_codec(page) for page in levels]
    if not all(names):
        _check_indexes(file, pages)
        if philips:
            return None
        _check_openslide_takes(file.name, tiff, levels)
        return tiff_facts(tiff, base, _remarks(tiff, levels))
    indexes = [
        _tile_index(file, page, str(name), sparse=philips)
        for page, name in zip(levels, names, strict=True)
    ]
    if philips:
        facts, spacings = philips_facts(base)
        indexes = [_without_padding(file, indexes, k, spacings) for k in range(len(indexes))]
    else:
        facts = tiff_facts(tiff, base, _remarks(tiff, levels))
    return TiledSlide(file, indexes, facts, options)


def _philips_levels(pages: Sequence[tifffile.TiffPage]) -> list[tifffile.TiffPage]:
    return [page for page in pages if page is pages[0] or page.is_reduced]


def _remarks(tiff: tifffile.TiffFile, levels: Sequence[tifffile.TiffPage]) -> tuple[str, ...]:
    """What of the file is not read."""
    further = tiff_pages.further_pictures(tiff, levels)
    if not further:
        return ()
    size = f"{further[0].imagewidth} x {further[0].imagelength} px"
    if len(further) == 1:
        return (f"holds 1 further picture that was not read ({size})",)
    return (f"holds {len(further)} further pictures that were not read (the largest {size})",)


def _check_openslide_takes(
    name: str, tiff: tifffile.TiffFile, levels: Sequence[tifffile.TiffPage]
) -> None:
    """Check that OpenSlide shows the pages that are the slide, and no others.

    Its level 0 is the first page, even if another is larger. Of an Aperio file each tiled page is a
    level, elsewhere each that is marked as reduced. It reads no SubIFDs.

    Raises:
        UnsupportedSlide: it would show others.
    """
    aperio = str(tiff.pages[0].description or "").startswith("Aperio")
    tiled = [page for page in tiff.pages if page.is_tiled]
    taken = {page.offset for page in tiled if aperio or page.index == 0 or page.is_reduced}
    if taken == {page.offset for page in levels}:
        return
    chain = {page.offset for page in tiff.pages}
    several = all(page.offset in chain for page in levels)
    where = "several pictures" if several else "its pyramid in SubIFDs"
    raise UnsupportedSlide(
        name,
        f"holds {where} with {_kind_of_pixels(levels[0])}, which is not read",
        "export it as 8-bit RGB, samples next to each other, with JPEG, JPEG 2000, LZW or deflate"
        " compression",
    )


def _kind_of_pixels(page: tifffile.TiffPage) -> str:
    """Why the pixels of a page are not read in place."""
    if int(page.compression) not in CODECS:
        return f"{_compression_name(int(page.compression))} compression"
    if int(page.planarconfig) != 1:
        return "a plane per colour"
    if page.bitspersample != 8:
        return f"{page.bitspersample} bits per sample"
    return "pixels of a kind that only OpenSlide decodes"


def _is_left_to_openslide(tiff: tifffile.TiffFile, base: tifffile.TiffPage) -> bool:
    """Formats whose tiles overlap or are in several areas: their tile index alone misleads."""
    if tiff.is_ndpi:
        return True
    first = tiff.pages[0]
    packet = first.tags.valueof(700, default=b"")
    return bool(
        "leica-microsystems.com/scn" in str(first.description or "")
        or str(first.tags.valueof("Software", default="")).startswith("MedScan")  # Trestle
        or str(base.tags.valueof("Make", default="")).startswith("Huron")
        or b"iScan" in (packet if isinstance(packet, bytes) else str(packet).encode())  # Ventana
        or "Argos.Scan.Metadata" in str(base.tags.valueof(65000, default=""))
    )


def _check_pixels(name: str, page: tifffile.TiffPage) -> None:
    """Refuse pixels that neither this reader nor OpenSlide shows as the colours they are.

    Raises:
        UnsupportedSlide: greyscale, samples that are not 8- or 16-bit integers, further channels,
            or a compression that is not read. The error's code is `pixels` or `compression`.
    """
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    if photometric in (0, 1):
        cause, remedy = "is greyscale or fluorescence, not brightfield colour", "give an H&E slide"
        raise UnsupportedSlide(name, cause, remedy, code="pixels")
    compression = int(page.compression)
    if compression not in CODECS and compression not in LEFT_TO_OPENSLIDE:
        label = _compression_name(compression)
        raise UnsupportedSlide(
            name,
            f"has tiles compressed as {label}, which is not read",
            "export it with JPEG, JPEG 2000, LZW or deflate compression",
            code="compression",
            facts={"compression": label},
        )
    bits, most = page.bitspersample, {2: 4, 6: 3}.get(photometric, samples)
    integers = int(page.sampleformat) == 1
    if bits not in (8, 16) or not integers or samples > most:
        kind = "bits" if integers else "bits, not integers"
        raise UnsupportedSlide(
            name,
            f"has {samples} samples of {bits} {kind} per pixel",
            "export it as RGB with 8 bits per sample",
            code="pixels",
            facts={"samples": samples, "bits": bits},
        )


def _compression_name(compression: int) -> str:
    """TIFF's name of a compression, or its number."""
    try:
        return tifffile.COMPRESSION(compression).name.replace("_", " ")
    except ValueError:
        return f"TIFF compression {compression}"


def _check_indexes(file: SlideFile, pages: list[tifffile.TiffPage]) -> None:
    """Check the index of a slide that is left to OpenSlide.

    OpenSlide believes what it reads, and ends the process if there is no memory for it.

    Raises:
        BrokenSlide: an index that can't be true.
    """
    for page in pages:
        planes = page.samplesperpixel if int(page.planarconfig) == 2 else 1
        offsets, lengths = (
            np.array_split(np.array(values, np.int64), planes) for values in _ranges(page)
        )
        for k in range(planes):
            store = TileStore(uri=file.uri, codec="")
            TileIndex(grid=_grid(page), store=store, offsets=offsets[k], lengths=lengths[k]).check(
                file.name, file.size
            )
    _check_areas(file, pages)


def _check_areas(file: SlideFile, pages: list[tifffile.TiffPage]) -> None:
    """Check the areas of a Ventana slide against its tile index.

    Its XML has rows and columns of each scanned area apart from the index; OpenSlide reads past the
    end of an index that has fewer.

    Raises:
        BrokenSlide: an area with more tiles than a level has.
    """
    found = [
        (page, re.search(r"level=\d+ mag=([\d.]+)", str(page.description or ""))) for page in pages
    ]
    levels = [(_grid(page), float(match[1])) for page, match in found if match]
    packets = [bytes(page.tags.valueof(700, default=b"")) for page, match in found if match]
    if not levels or b"EncodeInfo" not in packets[0]:
        return
    root = ET.fromstring(packets[0].rstrip(b"\0"))
    first, finest = levels[0]
    for area, origin in zip(
        root.iterfind("SlideStitchInfo/ImageInfo"), root.iterfind("AoiOrigin/*"), strict=True
    ):
        columns = int(origin.attrib["OriginX"]) // first.tile.width + int(area.attrib["NumCols"])
        rows = int(origin.attrib["OriginY"]) // first.tile.height + int(area.attrib["NumRows"])
        for grid, magnification in levels:
            shrunk = max(1, int(finest / magnification))
            if -(-columns // shrunk) > grid.columns or -(-rows // shrunk) > grid.rows:
                cause = f"has an area of {columns} x {rows} tiles, more than its levels have"
                raise BrokenSlide(file.name, cause, "copy or export it again")


def _grid(page: tifffile.TiffPage) -> TileGrid:
    level = Size(page.imagewidth, page.imagelength)
    return TileGrid(level=level, tile=Size(page.tilewidth, page.tilelength))


def _ranges(page: tifffile.TiffPage) -> tuple[Sequence[int], Sequence[int]]:
    return page.dataoffsets, page.databytecounts


def _codec(page: tifffile.TiffPage) -> str | None:
    """Name of the codec, None if the page is not 8-bit colour or is not read in place."""
    codec = CODECS.get(int(page.compression))
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    if codec is None or page.bitspersample != 8 or int(page.planarconfig) != 1:
        return None
    if photometric not in (2, 6):
        return None
    if codec not in ("raw", "lzw", "deflate"):
        return codec if samples == 3 else None
    predictor = int(page.predictor)
    if photometric == 6 or samples not in (3, 4) or predictor not in (1, 2) or page.fillorder != 1:
        return None
    return codec + ("+delta" if predictor == 2 else "") + _alpha(page)


def _alpha(page: tifffile.TiffPage) -> str:
    """How the fourth sample is meant.

    libtiff, and so OpenSlide, takes one of unspecified kind for premultiplied alpha.
    """
    if page.samplesperpixel == 3:
        return ""
    return "+alpha" if [int(kind) for kind in page.extrasamples] == [2] else "+premultiplied"


def _tile_index(file: SlideFile, page: tifffile.TiffPage, codec: str, *, sparse: bool) -> TileIndex:
    header = (
        jpeg.stream_header(page.jpegtables, ycbcr=int(page.photometric) == 6)
        if codec == "jpeg"
        else b""
    )
    offsets, lengths = (np.array(values, np.int64) for values in _ranges(page))
    store = TileStore(uri=file.uri, codec=codec, header=header, sparse=sparse, version=file.version)
    index = TileIndex(grid=_grid(page), store=store, offsets=offsets, lengths=lengths)
    index.check(file.name, file.size)
    return index


def _without_padding(
    file: SlideFile, indexes: list[TileIndex], k: int, spacings: list[float]
) -> TileIndex:
    """The index without the padding to whole tiles, which Philips counts into its levels' sizes."""
    if len(spacings) != len(indexes):
        cause = f"gives {len(spacings)} pixel spacings for {len(indexes)} levels"
        raise BrokenSlide(file.name, cause, "export it again")
    index, full = indexes[k], indexes[0].grid.level
    shrunk = round(spacings[k] / spacings[0])
    covered = Size(
        index.grid.columns * index.grid.tile.width, index.grid.rows * index.grid.tile.height
    )
    if shrunk < 1 or full.width // shrunk > covered.width or full.height // shrunk > covered.height:
        raise BrokenSlide(
            file.name, f"gives a pixel spacing that does not fit level {k}", "export it again"
        )
    return index.cropped(full.shrunk(shrunk))
