"""Cleaning a TIFF in place: what stays is listed, every other byte of the copy is overwritten.

The base image and the levels of its pyramid stay, with the tags that decode them or carry mpp,
objective and maker. Directories are written anew without the rest, and every byte of the file that
nothing in them points to is overwritten: labels, names, private tags, and what a program before us
had only unlinked. What is inside encoded tiles (comments in a JPEG) and ICC profiles stays.
"""

from __future__ import annotations

import re
import shutil
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import tifffile

from pipelines.slides import tiff_pages
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.resolution import UNITS_IN_UM
from pipelines.slides.tiff import CODECS

DESCRIPTION, SUB_IFDS, NDPI_FORMAT, NDPI_LENS = 270, 330, 65420, 65421
NUMERIC_TAGS = frozenset(
    {
        254,
        256,
        257,
        258,
        259,
        262,
        266,
        273,
        274,
        277,
        278,
        279,
        284,
        317,
        322,
        323,
        324,
        325,
        338,
        339,
        529,
        530,
        531,
        532,
    }
    | {282, 283, 296}  # resolution: mpp
    | {32997}  # Aperio's ImageDepth
    # NDPI: lens, position on the glass, where rows of tiles begin.
    | {*range(NDPI_FORMAT, 65427), 65432}
)
"""TIFF tags that stay if their values are numbers."""
BINARY_TAGS = frozenset({347, 34675})
"""JPEG tables and colour profile."""
MAKER_TAGS = frozenset({271, 272})
"""Maker and model of the scanner, as DICOM's Basic Profile keeps them."""

KEPT_APERIO_FIELDS = ("AppMag", "MPP", "Gamma", "StripeWidth")
"""Fields of Aperio's description that stay if they are numbers."""
_APERIO_FIELDS = frozenset(
    {
        "Barcode",
        "Date",
        "DisplayColor",
        "Exposure Scale",
        "Exposure Time",
        "Filename",
        "Filtered",
        "Focus Offset",
        "ICC Profile",
        "ImageID",
        "Left",
        "LineAreaXOffset",
        "LineAreaYOffset",
        "LineCameraSkew",
        "OriginalHeight",
        "OriginalWidth",
        "Originalheight",
        "Parmset",
        "Rack",
        "ScanScope ID",
        "ScannerType",
        "SessonMode",
        "Slide",
        "Time",
        "Time Zone",
        "Title",
        "Top",
        "User",
    }
)
"""Aperio's other fields, which a report may name; an unknown one may itself be a patient's name."""
_APERIO_WORD = re.compile(
    r"Aperio|Image|Library|Leica|Biosystems|v\d[\d.]*|\[?\d+,\d+|\(?\d+x\d+[\])]?|->|-"
    r"|(JPEG|J2K)/\w{3,9}|Q=\d+|label|macro"
)
_OME_KEPT = {
    "OME": (),
    "Instrument": ("ID",),
    "Objective": ("ID", "NominalMagnification"),
    "Image": ("ID",),
    "Pixels": (
        "ID",
        "DimensionOrder",
        "Type",
        "SizeX",
        "SizeY",
        "SizeZ",
        "SizeC",
        "SizeT",
        "SignificantBits",
        "Interleaved",
        "BigEndian",
        "PhysicalSizeX",
        "PhysicalSizeXUnit",
        "PhysicalSizeY",
        "PhysicalSizeYUnit",
    ),
    "Channel": ("ID", "SamplesPerPixel"),
    "TiffData": (),  # without attributes: all directories in their order, of which some are gone
}
"""Elements of OME-XML that stay, with their attributes: geometry, channels and magnification."""
_OME_VALUE = re.compile(
    r"[-+.,\dEe]+|true|false|u?int\d+|[XYZCT]{5}"
    r"|(Instrument|Objective|Image|Pixels|Channel)(:\d+)+|" + "|".join(map(re.escape, UNITS_IN_UM))
)
_OME_NAMESPACE = re.compile(r"\{(http://www\.openmicroscopy\.org/Schemas/OME/\d{4}-\d{2})\}OME")
LOSS = 2
"""A picture of at least this fraction of the base's pixels is not removed unless it has a name."""
_CHUNK = 2**20


def clean_tiff(source: Path, target: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy a TIFF and overwrite in the copy what is not to stay.

    Returns:
        What the pictures showed that were removed (`label`, `macro`, `thumbnail`; `image` if the
        file does not say), and names of the metadata fields that were removed.

    Raises:
        UnsupportedSlide: the slide can't be cleaned, or would lose a picture of the specimen.
        BrokenSlide: the file can't be read.
    """
    size = source.stat().st_size
    try:
        with tifffile.TiffFile(source) as tiff:
            images, plan = _plan(source.name, size, tiff)
    except tiff_pages.DAMAGE as error:
        cause = f"has a TIFF header that can't be read ({type(error).__name__})"
        remedy = "it may be truncated: copy or export it again"
        raise BrokenSlide(source.name, cause, remedy) from error
    shutil.copyfile(source, target)
    with target.open("r+b") as stream:
        _blank_all_but(stream, size, plan.ranges)
        for begin, data in plan.patches:
            stream.seek(begin)
            stream.write(data)
    return images, tuple(sorted(plan.fields))


def not_yet(name: str) -> UnsupportedSlide:
    """The error for a slide of a format that can't be cleaned."""
    cause = "is of a format that can't be de-identified yet"
    remedy = "convert it to SVS, OME-TIFF or DICOM first"
    return UnsupportedSlide(name, cause, remedy, code="not-deidentified")


@dataclass(kw_only=True)
class _Plan:
    """What a cleaned TIFF consists of.

    Attributes:
        ranges: bytes that stay or are written anew, as (begin, end); all others become zero.
        patches: what is written anew, as (begin, bytes).
        fields: names of the tags that went.
    """

    ranges: list[tuple[int, int]] = field(default_factory=list)
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)

    def write(self, begin: int, data: bytes) -> None:
        """Note bytes that are written anew."""
        self.patches.append((begin, data))
        self.ranges.append((begin, begin + len(data)))


def _plan(name: str, size: int, tiff: tifffile.TiffFile) -> tuple[tuple[str, ...], _Plan]:
    """What the removed pictures show, and what stays of the file."""
    tiff_pages.check_count(name, tiff)
    tiff_pages.refuse_truncated(name, size, tiff)  # what can't be reached can't be cleaned
    kept, subs = _levels(name, tiff)
    images = _names_of_others(tiff, kept, subs)
    plan = _Plan(ranges=[(0, 8 if tiff.tiff.offsetsize == 4 else 16)])
    if tiff.tiff.is_ndpi:
        plan.ranges[0] = (0, 12)
    followers = [*(page.offset for page in kept[1:]), 0]
    for page, follower in zip(kept, followers, strict=True):
        own = {sub.offset for sub in page.pages or ()}
        _plan_directory(plan, tiff, page, [sub for sub in subs if sub.offset in own], follower)
    for page in subs:
        _plan_directory(plan, tiff, page, [], 0)
    plan.write(*_first_directory(tiff, kept[0].offset))
    return images, plan


def _levels(
    name: str, tiff: tifffile.TiffFile
) -> tuple[list[tifffile.TiffPage], list[tifffile.TiffPage]]:
    """Pages of the main chain that show the specimen, and the base's SubIFDs that do.

    Raises:
        UnsupportedSlide: no page can be taken for the base, one that stays is encoded in a way that
            we don't know, or a further picture of the specimen would be lost.
    """
    kept, subs = _ndpi_levels(name, tiff) if tiff.is_ndpi else _tiled_levels(name, tiff)
    if any(int(page.compression) not in CODECS for page in (*kept, *subs)):
        raise not_yet(name)
    return kept, subs


def _ndpi_levels(
    name: str, tiff: tifffile.TiffFile
) -> tuple[list[tifffile.TiffPage], list[tifffile.TiffPage]]:
    if not tiff.tiff.is_ndpi:  # offsets beyond 4 GB would be lost
        raise UnsupportedSlide(name, "is an NDPI under another name", "name it .ndpi")
    base = tiff.pages[0]
    shown = [page for page in tiff.pages if float(page.tags.valueof(NDPI_LENS, default=0)) > 0]
    return [page for page in shown if tiff_pages.same_pyramid(base, page)], []


def _tiled_levels(
    name: str, tiff: tifffile.TiffFile
) -> tuple[list[tifffile.TiffPage], list[tifffile.TiffPage]]:
    tiled = [page for page in tiff.pages if page.is_tiled]
    if not tiled:
        raise not_yet(name)
    base = tiff_pages.base_page(name, tiff, tiled)
    kept = _pyramid(tiff, base, tiled)
    sub_levels = [
        page for page in base.pages or () if page.is_tiled and tiff_pages.same_pyramid(base, page)
    ]
    subs = [
        page
        for page in sub_levels
        if _is_reduced(page) or (tiff.is_ome and not int(page.subfiletype))
    ]
    _refuse_further(name, tiff, kept)
    return kept, subs


def _refuse_further(name: str, tiff: tifffile.TiffFile, kept: Sequence[tifffile.TiffPage]) -> None:
    """Refuse to throw away what may be a further picture of the specimen.

    Raises:
        UnsupportedSlide: there is one as large as the picture that stays, unnamed.
    """
    base = kept[0]
    for page in tiff_pages.further_pictures(tiff, kept):
        if page.imagewidth * page.imagelength * LOSS >= base.imagewidth * base.imagelength:
            shown = f"{page.imagewidth} x {page.imagelength} px"
            raise UnsupportedSlide(
                name,
                f"holds a further picture ({shown}) that de-identification would remove",
                "export each picture of the specimen to a file of its own",
                code="further-pictures",
                facts={"width": page.imagewidth, "height": page.imagelength},
            )


def _pyramid(
    tiff: tifffile.TiffFile, base: tifffile.TiffPage, tiled: list[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """The base and its levels in the main chain, without what the file calls label or macro."""
    levels, names = tiff_pages.chain_levels(base, tiled), tiff_pages.image_names(tiff)
    return [
        page
        for page in tiled
        if page is base or (page in levels and not _may_show_glass(page, names))
    ]


def _may_show_glass(page: tifffile.TiffPage, names: dict[int, str] | None) -> bool:
    """Whether a name holds the word label or macro anywhere: better one level less than a name."""
    text = str(page.description or "") if names is None else names.get(page.offset, "")
    glass = re.search(r"\b(label|macro)\b", text.partition("|")[0], re.IGNORECASE)
    return bool(glass) or tiff_pages.picture_name(page, names) == "macro"


def _names_of_others(
    tiff: tifffile.TiffFile, kept: Sequence[tifffile.TiffPage], subs: Sequence[tifffile.TiffPage]
) -> tuple[str, ...]:
    """What the pages and SubIFDs show that don't stay."""
    stays = {page.offset for page in (*kept, *subs)}
    names = tiff_pages.image_names(tiff)
    gone = [page for page in tiff.pages if page.offset not in stays]
    gone_subs = [sub for page in kept for sub in page.pages or () if sub.offset not in stays]
    return (*(_picture(page, names) for page in gone), *("image" for _ in gone_subs))


def _picture(page: tifffile.TiffPage, names: dict[int, str] | None) -> str:
    if page.is_ndpi:
        lens = float(page.tags.valueof(NDPI_LENS, default=0))
        return {-1.0: "macro", -2.0: "map"}.get(lens, "image")
    return tiff_pages.picture_name(page, names) or "image"


def _is_reduced(page: tifffile.TiffPage) -> bool:
    """NewSubfileType says a reduced version of another page, and no more.

    Aperio's macro has bit 3.
    """
    return int(page.subfiletype) == 1


def _plan_directory(
    plan: _Plan,
    tiff: tifffile.TiffFile,
    page: tifffile.TiffPage,
    subs: Sequence[tifffile.TiffPage],
    follower: int,
) -> None:
    """Plan the directory of a page without the tags that go, and what it points to."""
    form = tiff.tiff
    tiff.filehandle.seek(page.offset)
    count = struct.unpack(form.tagnoformat, tiff.filehandle.read(form.tagnosize))[0]
    table = tiff.filehandle.read(count * form.tagsize + form.offsetsize)
    upper = tiff.filehandle.read(4 * count) if form.is_ndpi else b""
    entries: dict[int, tuple[bytes, bytes]] = {}
    for tag in page.tags.values():
        k = (tag.offset - page.offset - form.tagnosize) // form.tagsize
        entry = table[k * form.tagsize : (k + 1) * form.tagsize]
        if tag.code in entries:
            entry = b""
        elif tag.code == DESCRIPTION:
            text, removed = _clean_description(tag.value, page)
            plan.fields.update(removed)
            entry = _new_entry(plan, form, tag, text.encode() + b"\0") if text else b""
        elif tag.code == SUB_IFDS:
            offsets = b"".join(
                struct.pack(form.byteorder + ("Q" if tag.dtype > 15 else "I"), sub.offset)
                for sub in subs
            )
            entry = _new_entry(plan, form, tag, offsets) if subs else b""
        elif not _stays(tag):
            plan.fields.add(str(tag.name))
            entry = b""
        elif tag.valuebytecount > form.tagoffsetthreshold:
            plan.ranges.append((tag.valueoffset, tag.valueoffset + tag.valuebytecount))
        if entry:
            entries[tag.code] = entry, upper[4 * k : 4 * k + 4]
    ordered = [entries[code] for code in sorted(entries)]
    plan.write(
        page.offset,
        (
            struct.pack(form.tagnoformat, len(ordered))
            + b"".join(entry for entry, _ in ordered)
            + struct.pack(form.offsetformat, follower)
            + b"".join(high for _, high in ordered)
        ),
    )
    plan.ranges += [
        (a, a + b) for a, b in zip(page.dataoffsets, page.databytecounts, strict=True) if b
    ]
    if form.is_ndpi:  # a strip begins with the JPEG's header, its tiles behind that
        strips = (page.tags.valueof(code, default=()) for code in (273, 279))
        plan.ranges += [(a, a + b) for a, b in zip(*strips, strict=True)]


def _stays(tag: tifffile.TiffTag) -> bool:
    numeric = int(tag.dtype) not in (1, 2, 7)
    return (
        (tag.code in NUMERIC_TAGS and numeric)
        or tag.code in BINARY_TAGS
        or (tag.code in MAKER_TAGS and int(tag.dtype) == 2)
    )


def _new_entry(plan: _Plan, form: tifffile.TiffFormat, tag: tifffile.TiffTag, data: bytes) -> bytes:
    """Entry of a tag whose value is written anew where the old one is.

    Raises:
        ValueError: it is longer.
    """
    if len(data) > tag.valuebytecount:
        raise ValueError(f"{tag.name} of {len(data)} bytes")
    value = data
    if len(data) > form.tagoffsetthreshold:
        plan.write(tag.valueoffset, data)
        value = struct.pack(form.offsetformat, tag.valueoffset)
    count = len(data) * tag.count // tag.valuebytecount
    return struct.pack(form.tagformat1, tag.code, tag.dtype) + struct.pack(
        form.tagformat2, count, value
    )


def _first_directory(tiff: tifffile.TiffFile, offset: int) -> tuple[int, bytes]:
    """Where the file's header names the first directory, and what it says there."""
    form = tiff.tiff
    return 8 if form.version == 43 else 4, struct.pack(form.offsetformat, offset)


def _blank_all_but(stream: IO[bytes], size: int, ranges: Iterable[tuple[int, int]]) -> None:
    for begin, end in _gaps(size, ranges):
        stream.seek(begin)
        for offset in range(begin, end, _CHUNK):
            stream.write(b"\0" * min(_CHUNK, end - offset))


def _gaps(size: int, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    covered = 0
    for begin, end in sorted(ranges):
        if min(begin, size) > covered:
            yield covered, min(begin, size)
        covered = max(covered, end)
    if covered < size:
        yield covered, size


def _clean_description(value: object, base: tifffile.TiffPage) -> tuple[str, list[str]]:
    """What stays of a description, and the names of what went.

    Of Aperio's, sizes and optics stay; of OME-XML, geometry; of any other, nothing.
    """
    text = value if isinstance(value, str) else ""
    if text.startswith("Aperio"):
        return _clean_aperio(text)
    if "<OME" in text:
        return _clean_ome(text, base), ["OME names, dates and annotations"]
    return "", ["ImageDescription"]


def _clean_aperio(text: str) -> tuple[str, list[str]]:
    first, *pairs = text.split("|")
    lines = [
        " ".join(word for word in line.split() if _APERIO_WORD.fullmatch(word))
        for line in first.split(";")[0].splitlines()
    ]
    kept, removed = [], []
    for pair in pairs:
        name, _, value = (part.strip() for part in pair.partition("="))
        if name in KEPT_APERIO_FIELDS and re.fullmatch(r"[\d.,]+", value):
            kept.append(pair)
        else:
            removed.append(name if name in _APERIO_FIELDS else "ImageDescription")
    return "|".join(["\n".join(lines), *kept]), removed


def _clean_ome(text: str, base: tifffile.TiffPage) -> str:
    """The XML of the base image alone.

    Raises:
        ValueError: it is not OME-XML, or the base is not in it.
    """
    root = ET.fromstring(text)
    match = _OME_NAMESPACE.fullmatch(root.tag)
    if not match:
        raise ValueError("no OME-XML")
    namespace = root.tag.removesuffix("OME")

    def kept(element: ET.Element) -> ET.Element:
        name = element.tag.removeprefix(namespace)
        values = {key: element.get(key) or "" for key in _OME_KEPT[name]}
        copy = ET.Element(
            name, {key: value for key, value in values.items() if _OME_VALUE.fullmatch(value)}
        )
        copy.extend(
            kept(child) for child in element if child.tag.removeprefix(namespace) in _OME_KEPT
        )
        for surplus in copy.findall("TiffData")[1:]:
            copy.remove(surplus)
        return copy

    def shows_base(image: ET.Element) -> bool:
        size = image.find("Pixels")
        return size is not None and (size.get("SizeX"), size.get("SizeY")) == (
            str(base.imagewidth),
            str(base.imagelength),
        )

    clean = kept(root)
    clean.set("xmlns", match[1])
    images = clean.findall("Image")
    shown = [image for image in images if shows_base(image)]
    if not shown:
        raise ValueError("OME-XML without the base image")
    for image in images:
        if image is not shown[0]:
            clean.remove(image)
    return ET.tostring(clean, encoding="unicode")
