"""Which directories of a TIFF are the slide: the largest picture and its levels.

tifffile parses the directories; this module decides what they are. It knows no pixels, and of the
metadata only what distinguishes a level from another picture.
"""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

import tifffile

from pipelines.slides.errors import BrokenSlide, UnsupportedSlide

SAME_SHAPE = 0.02
"""Pages whose width and height shrink alike within this share are levels of one pyramid: small
levels are rounded to whole pixels."""
MAX_PAGES = 1000
"""Directories beyond which a file is not believed: a pyramid has about ten."""
DAMAGE = (
    tifffile.TiffFileError,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    OSError,
    ET.ParseError,
    ZeroDivisionError,
    RecursionError,
    AssertionError,
)
"""What tifffile raises on damaged headers."""
_KINDS = "label|macro|thumbnail|overview|map"
"""What pictures show that have the glass and not the specimen at full scale."""
ASSOCIATED = re.compile(
    rf"(?:.*(?:[\[(:/|]| - )\s*)?({_KINDS})(?:[ _]image)?(?:[ _]\d+(?:x\d+)?)?\s*[\])]?",
    re.IGNORECASE | re.DOTALL,
)
"""A name that says no more than that: `Label`, `macro image`, `a.svs [label image]`. The words in
a longer text say nothing: `Heat map of H&E`, `Patient label removed`."""
_APERIO_NAME = re.compile(rf"[\r\n]\s*({_KINDS})\b", re.IGNORECASE)
"""Aperio's name of a picture: the first word of a line behind the first."""

_APERIO_SIZE = re.compile(r"[\r\n]\s*(\d+x\d+)\b")
"""The size of the scanned region, with which the second line of a description begins."""


def check_count(name: str, tiff: tifffile.TiffFile) -> None:
    """Refuse a file without pictures, or with more directories than a slide has.

    Raises:
        BrokenSlide: it has none of any size, or more than `MAX_PAGES`.
    """
    if len(tiff.pages) > MAX_PAGES:
        cause = f"claims more than {MAX_PAGES} directories"
        raise BrokenSlide(name, cause, "copy or export it again")
    if not any(page.imagewidth * page.imagelength for page in tiff.pages):
        raise BrokenSlide(name, "holds no image", "it may be truncated: copy or export it again")


def refuse_truncated(name: str, size: int, tiff: tifffile.TiffFile) -> None:
    """Refuse a file that was cut behind its levels: it shows pixels, but is not what was scanned.

    Args:
        name: of the slide, for errors.
        size: bytes of the file.
        tiff: the parsed file.

    Raises:
        BrokenSlide: the chain of directories breaks off, or reaches beyond `size`.
    """
    last, form = tiff.pages[-1], tiff.tiff
    tiff.filehandle.seek(last.offset)
    count = struct.unpack(form.tagnoformat, tiff.filehandle.read(form.tagnosize))[0]
    tiff.filehandle.seek(count * form.tagsize, 1)
    follower = struct.unpack(form.offsetformat, tiff.filehandle.read(form.offsetsize))[0]
    ends = [follower]
    for page in tiff.pages:
        last_tile = zip(page.dataoffsets[-1:], page.databytecounts[-1:], strict=True)
        ends += [offset + length for offset, length in last_tile]
    if follower or max(ends) > size:
        cause = f"is truncated: its directories reach to byte {max(ends)} but it has {size} bytes"
        raise BrokenSlide(name, cause, "copy the file again")


def walk(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Pages of the main chain, each followed by its SubIFDs: OME-TIFF keeps the pyramid there."""
    for page in tiff.pages:
        yield page
        yield from page.pages or ()


def base_page(
    name: str, tiff: tifffile.TiffFile, pages: Sequence[tifffile.TiffPage]
) -> tifffile.TiffPage:
    """The largest picture of the specimen, which is level 0.

    A file whose largest picture is in strips may have tiled overviews (gdaladdo writes so). To take
    one of them for level 0 would show everything at a fraction of its scale.

    Pictures that the file names as label, macro or the like are left out, however large.

    Args:
        name: of the slide, for errors.
        tiff: the parsed file.
        pages: the tiled ones of all its pages; at least one.

    Raises:
        UnsupportedSlide: the largest picture is stored in strips.
    """
    named = _named_offsets(tiff)
    specimen = [page for page in pages if page.offset not in named and not page.is_mask]
    base = max(specimen or pages, key=_area)
    # Aperio's macro and label may be larger than level 0 of a small region: these are in strips.
    aperio = str(base.description or "").startswith("Aperio")
    for page in walk(tiff):
        full = not page.is_tiled and is_full(page) and _area(page) > _area(base)
        if full and page.offset not in named and not (aperio and page.index):
            raise in_strips(name, page)
    return base


def is_full(page: tifffile.TiffPage) -> bool:
    """Whether NewSubfileType marks a page neither as reduced (bit 0) nor as a mask (bit 2).

    Bit 1, a page of several, says nothing of its scale.
    """
    return not int(page.subfiletype) & 0b101


def _named_offsets(tiff: tifffile.TiffFile) -> set[int]:
    """Directories of the pictures that the file names as label, macro or the like."""
    names = image_names(tiff)
    named = [page for page in tiff.pages if picture_name(page, names)]
    return {part.offset for page in named for part in (page, *(page.pages or ()))}


def in_strips(name: str, page: tifffile.TiffPage) -> UnsupportedSlide:
    """The error for a slide whose largest picture is not tiled."""
    shown = f"{page.imagewidth} x {page.imagelength} px"
    return UnsupportedSlide(
        name,
        f"has its largest picture ({shown}) in strips, not in tiles",
        "export it as a pyramidal TIFF whose levels are all tiled",
        code="strips",
        facts={"width": page.imagewidth, "height": page.imagelength},
    )


def _area(page: tifffile.TiffPage) -> int:
    return int(page.imagewidth * page.imagelength)


def check_orientation(name: str, page: tifffile.TiffPage) -> None:
    """Refuse a picture that is stored turned or mirrored: viewers differ in whether they turn it.

    Raises:
        UnsupportedSlide: TIFF's Orientation is 2 to 8.
    """
    orientation = page.tags.valueof("Orientation", default=1)
    if orientation in range(2, 9):
        raise UnsupportedSlide(
            name,
            f"is stored turned or mirrored (TIFF Orientation {orientation})",
            "export it with its first pixel at the top left (Orientation 1)",
            code="orientation",
            facts={"orientation": int(orientation)},
        )


def pyramid(
    tiff: tifffile.TiffFile, base: tifffile.TiffPage, pages: Sequence[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """Pages that show what `base` shows, finest first; of several with one size, the first.

    By OpenSlide's rules: Aperio marks no level, each tiled page is one; elsewhere the page itself
    must say that it is a reduced image. SubIFDs of an OME-TIFF hold nothing but levels (OME-TIFF
    specification, "Sub-resolutions").
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
    base: tifffile.TiffPage, pages: Sequence[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """Tiled pages that are levels of `base`, in their order; `base` itself may be among them."""
    if str(base.description or "").startswith("Aperio"):
        pages = [page for page in pages if _is_aperio_level(base, page)]
    else:
        pages = _reduced(base, pages)
    return [page for page in pages if same_pyramid(base, page)]


def _is_aperio_level(base: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    """Whether a tiled page can show the region of `base`: another region may have its shape.

    A level is the base shrunk by a whole number, and its description begins with the same size:
    `46000x32914 [0,100 46000x32893] (240x240) -> 11500x8223 JPEG/RGB`.
    """
    scanned = [_APERIO_SIZE.search(str(of.description or "")) for of in (base, page)]
    sizes = {found[1] for found in scanned if found}
    shrunk = base.imagewidth / page.imagewidth
    return len(sizes) < 2 and abs(shrunk - round(shrunk)) <= SAME_SHAPE * shrunk


def _reduced(
    base: tifffile.TiffPage, pages: Sequence[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """Pages marked as reduced images (NewSubfileType 1) of `base`.

    Of several full images with one shape, each is followed by its own reduced ones.
    """
    found, full = [], base
    for page in (page for page in pages if not page.is_mask):
        if not page.is_reduced and same_pyramid(base, page):
            full = page
        elif page.is_reduced and full is base:
            found.append(page)
    return found


def same_pyramid(base: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    """Whether a page has the shape of `base` and is not larger."""
    across, down = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
    return across >= 1 and abs(across - down) <= SAME_SHAPE * across


def further_pictures(
    tiff: tifffile.TiffFile, levels: Sequence[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """Full pictures that are neither read nor named as label, macro or the like, largest first.

    Further scenes of one file, focal planes, or levels that are not marked as such.
    """
    read = {page.offset for page in levels}
    named = _named_offsets(tiff)
    found = [
        page
        for page in tiff.pages
        if page.offset not in read | named and is_full(page) and (page.is_tiled or tiff.is_ome)
    ]
    return sorted(found, key=_area, reverse=True)


def picture_name(page: tifffile.TiffPage, names: dict[int, str] | None) -> str:
    """What the file says that a page shows other than the specimen, empty if it says nothing.

    Args:
        page: a page of the main chain that is not a level.
        names: as `image_names` gives them.
    """
    text = str(page.description or "")
    if names is not None:
        found = ASSOCIATED.fullmatch(names.get(page.offset, "").strip())
    elif text.startswith("Aperio"):
        found = _APERIO_NAME.search(text.partition("|")[0])
    else:
        found = ASSOCIATED.fullmatch(text.strip())
    if found:
        return found[1].lower()
    if int(page.subfiletype) == 9:
        return "macro"
    # Aperio's levels have an arrow too, but are tiled.
    thumbnail = text.startswith("Aperio") and "->" in text and not page.is_tiled
    return "thumbnail" if thumbnail else ""


def image_names(tiff: tifffile.TiffFile) -> dict[int, str] | None:
    """Names of OME-XML's images by the offset of their first directory; None without OME-XML."""
    if not tiff.is_ome:
        return None
    found: dict[int, str] = {}
    for number, image in enumerate(ET.fromstring(tiff.ome_metadata or "").iterfind("{*}Image")):
        data = image.find("{*}Pixels/{*}TiffData")
        directory = int((data.get("IFD") if data is not None else None) or number)
        if 0 <= directory < len(tiff.pages):
            found[tiff.pages[directory].offset] = image.get("Name") or ""
    return found
