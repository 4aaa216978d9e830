"""The direct reader of tiled TIFF: Aperio SVS, OME-TIFF, Philips TIFF and generic (Big)TIFF, local and remote.

tifffile parses the directories once; from there on a slide is its tile index (`tiled`). What this file can't read in place is
left to OpenSlide: `open_direct` answers None.

Specs: TIFF 6.0, BigTIFF, Aperio SVS (ImageDescription `Aperio ...|AppMag = 20|MPP = 0.4990`; compressions 33003 and 33005 are
JPEG 2000), OME-XML `PhysicalSizeX`, Philips TIFF as OpenSlide documents it.
"""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

import numpy as np
import tifffile

from pipelines.slides import jpeg
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Size
from pipelines.slides.resolution import COARSEST_SCAN, PLAUSIBLE_MPP
from pipelines.slides.slide import SlideFacts
from pipelines.slides.source import SlideFile
from pipelines.slides.tiled import TiledSlide, TileIndex, TileStore
from pipelines.slides.tiles import TileGrid

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SAME_SHAPE = 0.02
"""Pages whose width and height shrink alike within this share are levels of one pyramid: small levels round to whole pixels."""
MOST_PAGES = 1000
"""Directories beyond which a file is not believed: a pyramid has about ten, and loops have no end."""

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


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head[:4] in MAGICS


_DAMAGE = (
    *(
        tifffile.TiffFileError,
        struct.error,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ),
    *(
        OverflowError,
        MemoryError,
        OSError,
        ET.ParseError,
        ZeroDivisionError,
        RecursionError,
        AssertionError,
    ),
)
"""What tifffile raises on damaged headers."""


def open_direct(file: SlideFile, *, identity: str | None) -> TiledSlide | None:
    """Open a TIFF by its tile index, or answer None where it must be left to OpenSlide.

    Raises:
        BrokenSlide: the header or index is corrupt, or the file ends before its tiles do.
        UnsupportedSlide: a TIFF of several channels or of greyscale.
    """
    try:
        with file.open() as stream, tifffile.TiffFile(stream, name=file.name) as tiff:
            return _open_parsed(file, tiff, identity=identity)
    except _DAMAGE as error:
        cause = f"has a TIFF header that can't be read ({type(error).__name__})"
        raise BrokenSlide(
            file.name, cause, "it may be truncated: copy or export it again"
        ) from error


def _open_parsed(
    file: SlideFile, tiff: tifffile.TiffFile, *, identity: str | None
) -> TiledSlide | None:
    if len(tiff.pages) > MOST_PAGES:
        raise BrokenSlide(
            file.name, f"claims more than {MOST_PAGES} directories", "copy or export it again"
        )
    pages = [page for page in _walk(tiff) if page.is_tiled]
    if not pages:
        if not len(tiff.pages):
            raise BrokenSlide(
                file.name, "holds no image", "it may be truncated: copy or export it again"
            )
        return None
    base = max(pages, key=lambda page: page.imagewidth * page.imagelength)
    if _is_left_to_openslide(tiff, base):
        _check_pages(file, pages)
        return None
    refuse_truncated(file.name, file.size, tiff)
    if base.samplesperpixel == 1 and int(base.photometric) in (0, 1):
        raise UnsupportedSlide(
            file.name, "is greyscale or fluorescence, not brightfield colour", "give an H&E slide"
        )
    philips = str(base.tags.valueof("Software", default="")).startswith("Philips")
    levels = (
        [page for page in pages if page is pages[0] or page.is_reduced]
        if philips
        else _levels(tiff, base, pages)
    )
    names = [_codec(page) for page in levels]
    if not all(names):
        _check_pages(file, pages)
        return None
    indexes = [
        _tile_index(file, page, str(name), sparse=philips)
        for page, name in zip(levels, names, strict=True)
    ]
    facts, spacings = _philips_facts(base) if philips else (_facts(tiff, base), [])
    if spacings:
        indexes = [_without_padding(file, indexes, k, spacings) for k in range(len(indexes))]
    return TiledSlide(file, indexes, facts, identity=identity)


def _is_left_to_openslide(tiff: tifffile.TiffFile, base: tifffile.TiffPage) -> bool:
    """Formats whose tiles overlap or lie in several areas: by their tile index alone they would show wrong pixels."""
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


def _check_pages(file: SlideFile, pages: list[tifffile.TiffPage]) -> None:
    """Check the index of a slide that is left to OpenSlide: it believes what it reads, and ends the process where memory fails.

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
    """Ventana's XML tells rows and columns of each scanned area by itself; OpenSlide reads past the index where it has fewer.

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
    return TileGrid(
        level=Size(page.imagewidth, page.imagelength), tile=Size(page.tilewidth, page.tilelength)
    )


def _ranges(page: tifffile.TiffPage) -> tuple[Sequence[int], Sequence[int]]:
    return page.dataoffsets, page.databytecounts


def refuse_truncated(name: str, size: int, tiff: tifffile.TiffFile) -> None:
    """A file that was cut behind its levels still shows pixels, but is not the file that was scanned.

    Raises:
        BrokenSlide: the chain of directories breaks off, or reaches behind the file's `size` in bytes.
    """
    last, form = tiff.pages[-1], tiff.tiff
    tiff.filehandle.seek(last.offset)
    count = struct.unpack(form.tagnoformat, tiff.filehandle.read(form.tagnosize))[0]
    tiff.filehandle.seek(count * form.tagsize, 1)
    follower = struct.unpack(form.offsetformat, tiff.filehandle.read(form.offsetsize))[0]
    ends = [follower] + [
        a + b
        for page in tiff.pages
        for a, b in zip(page.dataoffsets[-1:], page.databytecounts[-1:], strict=True)
    ]
    if follower or max(ends) > size:
        cause = f"is truncated: its directories reach to byte {max(ends)} but it has {size} bytes"
        raise BrokenSlide(name, cause, "copy the file again")


def _walk(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Pages of the main chain, each followed by its SubIFDs (OME-TIFF keeps the pyramid there)."""
    for page in tiff.pages:
        yield page
        yield from page.pages or ()


def _levels(
    tiff: tifffile.TiffFile, base: tifffile.TiffPage, pages: list[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """Pages that show what `base` shows, finest first; of several with one size, such as focal planes, the first.

    By OpenSlide's rules: Aperio marks no level, each tiled page is one; elsewhere the page itself must say that it is a reduced
    image. SubIFDs of an OME-TIFF hold nothing but levels (OME-TIFF specification, "Sub-resolutions").
    """
    if tiff.is_ome and base.pages:
        shown = [page for page in base.pages if page.is_tiled and same_pyramid(base, page)]
    else:
        shown = chain_levels(base, pages)
    found = {base.imagewidth: base}
    for page in shown:
        found.setdefault(page.imagewidth, page)
    return [found[width] for width in sorted(found, reverse=True)]


def chain_levels(
    base: tifffile.TiffPage, pages: list[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """Tiled pages that are levels of `base`, in their order; `base` itself may be among them."""
    if not str(base.description or "").startswith("Aperio"):
        pages = _reduced(base, pages)
    return [page for page in pages if same_pyramid(base, page)]


def _reduced(base: tifffile.TiffPage, pages: list[tifffile.TiffPage]) -> list[tifffile.TiffPage]:
    """Pages marked as reduced images (NewSubfileType 1) of `base`: of several full images alike, each is followed by its own."""
    found, full = [], base
    for page in (page for page in pages if not page.is_mask):
        if not page.is_reduced and same_pyramid(base, page):
            full = page
        elif page.is_reduced and full is base:
            found.append(page)
    return found


def same_pyramid(base: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    """Whether a page has the shape of `base` and is no larger."""
    across, down = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
    return across >= 1 and abs(across - down) <= SAME_SHAPE * across


def _codec(page: tifffile.TiffPage) -> str | None:
    """Name of the codec, None where the page is not 8-bit colour or is compressed in a way that is not read in place."""
    codec = CODECS.get(int(page.compression))
    ycbcr = int(page.photometric) == 6
    colour = (
        page.bitspersample == 8 and int(page.planarconfig) == 1 and int(page.photometric) in (2, 6)
    )
    if codec in ("raw", "lzw", "deflate"):
        if (
            not colour
            or ycbcr
            or page.samplesperpixel not in (3, 4)
            or int(page.predictor) not in (1, 2)
            or page.fillorder != 1
        ):
            return None
        return codec + ("+delta" if int(page.predictor) == 2 else "") + _alpha(page)
    return codec if colour and page.samplesperpixel == 3 else None


def _alpha(page: tifffile.TiffPage) -> str:
    """How the fourth sample is meant; libtiff, and so OpenSlide, takes one of unspecified kind for premultiplied alpha."""
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


def _facts(tiff: tifffile.TiffFile, base: tifffile.TiffPage) -> SlideFacts:
    description = str(base.description or "")
    icc = bytes(base.tags.valueof(34675, default=b""))
    maker = " ".join(
        str(base.tags.valueof(name, default="")).strip() for name in ("Make", "Model")
    ).strip()
    if description.startswith("Aperio"):
        found = dict(re.findall(r"\|\s*(MPP|AppMag|ScannerType)\s*=\s*([^|]*)", description))
        return SlideFacts(
            vendor="aperio",
            resolution=_number(found.get("MPP")),
            objective=_number(found.get("AppMag")),
            scanner=f"Aperio {found.get('ScannerType', '').strip()}".strip(),
            icc=icc,
        )
    if tiff.is_ome:
        return _ome_facts(ET.fromstring(tiff.ome_metadata or ""), base, icc, maker)
    return SlideFacts(vendor="generic-tiff", resolution=_tag_mpp(base), scanner=maker, icc=icc)


def _number(text: str | None) -> float | None:
    """A positive number, None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value > 0 else None


def _ome_facts(root: ET.Element, base: tifffile.TiffPage, icc: bytes, maker: str) -> SlideFacts:
    """What OME-XML tells of the image that `base` shows; what it tells in two ways is not known."""
    shown = _ome_images(root, base)
    used = {at.get("ID") for image in shown for at in image.iterfind("{*}ObjectiveSettings")}
    objectives = [at for at in root.iterfind(".//{*}Objective") if not used or at.get("ID") in used]
    for at in root.iterfind(".//{*}Microscope"):
        maker = maker or f"{at.get('Manufacturer', '')} {at.get('Model', '')}".strip()
    return SlideFacts(
        vendor="ome-tiff",
        resolution=_only({_ome_mpp(at) for image in shown for at in image.iterfind("{*}Pixels")}),
        objective=_only({_number(at.get("NominalMagnification")) for at in objectives}),
        scanner=maker,
        icc=icc,
    )


def _ome_images(root: ET.Element, base: tifffile.TiffPage) -> list[ET.Element]:
    """Images that `base` can be: those of its size; of several, the one whose TiffData names its directory."""
    size = {"SizeX": str(base.imagewidth), "SizeY": str(base.imagelength)}
    fitting = [
        image
        for image in root.iterfind("{*}Image")
        if any(
            all(at.get(side, own) == own for side, own in size.items())
            for at in image.iterfind("{*}Pixels")
        )
    ]
    named = [
        image
        for image in fitting
        if any(_names(at, base.index) for at in image.iterfind("{*}Pixels/{*}TiffData"))
    ]
    return named if len(fitting) > 1 and named else fitting


def _names(data: ET.Element, directory: int) -> bool:
    """Whether a TiffData element names a directory."""
    first = data.get("IFD")
    return first is not None and 0 <= directory - int(first) < int(data.get("PlaneCount", "1"))


def _ome_mpp(pixels: ET.Element) -> float | None:
    size, unit = pixels.get("PhysicalSizeX"), _UNIT_IN_UM.get(pixels.get("PhysicalSizeXUnit", "µm"))
    return float(size) * unit if size and unit is not None else None


def _only(values: set[float | None]) -> float | None:
    """The value where there is one and no other."""
    return values.pop() if len(values) == 1 else None


def _philips_facts(base: tifffile.TiffPage) -> tuple[SlideFacts, list[float]]:
    """What the XML in ImageDescription tells, and the pixel spacing of every level in mm."""
    root = ET.fromstring(str(base.description))

    def values(element: ET.Element, name: str) -> list[str]:
        return [
            found.text or "" for found in element.iter("Attribute") if found.get("Name") == name
        ]

    scans = [
        scan
        for scan in root.iterfind(".//DataObject[@ObjectType='DPScannedImage']")
        if "WSI" in values(scan, "PIM_DP_IMAGE_TYPE")
    ]
    if len(scans) != 1:
        raise ValueError(f"{len(scans)} whole-slide images in one file")
    levels = [
        at
        for at in scans[0].iter("DataObject")
        if at.get("ObjectType") == "PixelDataRepresentation"
    ]
    spacings = [_philips_spacing(values(level, "DICOM_PIXEL_SPACING")[0]) for level in levels]
    own = scans[0].find("Attribute[@Name='DICOM_PIXEL_SPACING']")  # those of the levels are rounded
    model = [
        values(root, name)[:1] for name in ("DICOM_MANUFACTURER", "DICOM_MANUFACTURERS_MODEL_NAME")
    ]
    facts = SlideFacts(
        vendor="philips",
        resolution=1000 * (spacings[0] if own is None else _philips_spacing(own.text or "")),
        scanner=" ".join(text for found in model for text in found),
        icc=bytes(base.tags.valueof(34675, default=b"")),
    )
    return facts, spacings


def _philips_spacing(text: str) -> float:
    """Spacing of columns in mm from `"0.000227" "0.000227"`, rows first."""
    return float(text.replace('"', " ").split()[1])


def _without_padding(
    file: SlideFile, indexes: list[TileIndex], k: int, spacings: list[float]
) -> TileIndex:
    """Philips pads every level to whole tiles and gives the padded size: take the true one from the spacings."""
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


_UNIT_IN_UM = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def _tag_mpp(page: tifffile.TiffPage) -> float | None:
    """From XResolution; a value outside what a scanner makes (72 dpi and the like) is a printing resolution, not a scale."""
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    numerator, denominator = page.tags.valueof("XResolution", default=(0, 1))
    if unit is None or not numerator or not denominator:
        return None
    mpp = unit * denominator / numerator
    return mpp if PLAUSIBLE_MPP[0] <= mpp <= COARSEST_SCAN else None
