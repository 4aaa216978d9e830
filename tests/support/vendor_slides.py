"""Small slides of formats that OpenSlide reads: NDPI, MIRAX, Leica SCN, Ventana BIF and Trestle.

Written after OpenSlide's own readers, which are the only public description of most of them.
Scanners write more than this.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.slides.geometry import Rectangle
from tests.support import tiff_writer as tw
from tests.support.tiff_slides import (
    BIG,
    JPEG,
    MPP,
    TILE,
    YCBCR,
    Pixels,
    Tags,
    TiffSlide,
    jpeg_ycc,
    pyramid,
    resolution,
)
from tests.support.tiff_writer import Directory, TiffForm

OVERLAP = 16
"""Pixels that neighbouring tiles of level 0 share in formats whose tiles overlap."""


def mosaic(pixels: Pixels, overlap: int) -> Pixels:
    """The tiles side by side, each repeating what it shares with its neighbours."""
    step = TILE - overlap
    rows, columns = (-(-(side - overlap) // step) for side in pixels.shape[:2])
    padding = [
        (0, count * step + overlap - side)
        for count, side in zip((rows, columns), pixels.shape[:2], strict=True)
    ]
    pixels = np.pad(pixels, (*padding, (0, 0)), mode="edge")
    parts = [
        [pixels[y * step : y * step + TILE, x * step : x * step + TILE] for x in range(columns)]
        for y in range(rows)
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in parts])


def write_trestle(path: Path, pixels: Pixels) -> None:
    """Trestle: a tiled TIFF whose tiles overlap as its description says, and whose resolution tag
    is the mpp itself."""
    overlaps = " ".join(str(OVERLAP >> k) for k in range(2) for _ in "xy")
    description = f"Objective Power=20;OverlapsXY={overlaps};Background Color=F3F1F4"
    levels = [mosaic(level, OVERLAP >> k) for k, level in enumerate(pyramid(pixels, 2))]
    scale: Tags = {tw.X_RESOLUTION: ("ratio", [500, 1000]), tw.Y_RESOLUTION: ("ratio", [500, 1000])}
    base: Tags = {tw.SOFTWARE: ("ascii", "MedScan 4.0"), tw.DESCRIPTION: ("ascii", description)}
    TiffSlide(encode=jpeg_ycc, compression=JPEG, photometric=YCBCR, base=base | scale).write(
        path, levels
    )


def write_scn(path: Path, pixels: Pixels) -> None:
    """Leica SCN: a BigTIFF whose XML places the scanned area on the glass."""
    levels, nm = pyramid(pixels), round(1000 * MPP)
    height, width = pixels.shape[:2]
    dimensions = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{k}" ifd="{k}"/>'
        for k, level in enumerate(levels)
    )
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" '
        'uuid="urn:uuid:1">'
        f'<collection name="one" uuid="urn:uuid:2" sizeX="{2 * width * nm}" '
        f'sizeY="{2 * height * nm}">'
        '<barcode>YQ==</barcode><image name="image" uuid="urn:uuid:3"><creationDate>'
        "2020-01-01</creationDate>"
        '<device model="Leica SCN400" version="1"/>'
        f'<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
        f'<view sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{100 * nm}" '
        f'offsetY="{200 * nm}" spacingZ="0"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>"
        "<illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>"
        "brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image></collection></scn>"
    )
    base: Tags = {tw.DESCRIPTION: ("ascii", xml)} | resolution(MPP)
    TiffSlide(encode=jpeg_ycc, compression=JPEG, photometric=YCBCR, form=BIG, base=base).write(
        path, levels
    )


def write_bif(path: Path, pixels: Pixels) -> None:
    """Ventana BIF: a label, then levels whose tiles overlap as the XML says.

    Rows are numbered from below, to and fro.
    """
    first = mosaic(pixels, OVERLAP)
    rows, columns = (side // TILE for side in first.shape[:2])

    def number(column: int, row: int) -> int:
        from_below = rows - 1 - row
        return from_below * columns + (columns - 1 - column if from_below % 2 else column) + 1

    def joint(direction: str, one: int, other: int, x: int, y: int) -> str:
        return (
            f'<TileJointInfo FlagJoined="1" Confidence="99" Direction="{direction}" Tile1="{one}" '
            f'Tile2="{other}" '
            f'OverlapX="{x}" OverlapY="{y}"/>'
        )

    places = list(product(range(rows), range(columns)))
    joints = [
        joint("RIGHT", number(x, y), number(x + 1, y), OVERLAP, 0)
        for y, x in places
        if x + 1 < columns
    ]
    joints += [joint("UP", number(x, y), number(x, y - 1), 0, OVERLAP) for y, x in places if y]
    encoding = (
        '<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" '
        f'NumRows="{rows}" NumCols="{columns}" Width="{TILE}" Height="{TILE}" Pos-X="0" Pos-Y="0">'
        f"{''.join(joints)}</ImageInfo>"
        '</SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scan = f'<iScan ScannerModel="One" Magnification="20" ScanRes="{MPP}"/>'
    label: Tags = {
        tw.DESCRIPTION: ("ascii", "Label Image"),
        tw.XMP: ("undefined", scan.encode() + b"\0"),
    }
    levels = [np.full((TILE, TILE, 3), 250, np.uint8), *pyramid(first, 2)]

    def described(k: int) -> Tags:
        tags: Tags = {
            tw.DESCRIPTION: ("ascii", f"level={k - 1} mag={20 // 2 ** (k - 1)} quality=90")
        }
        return tags | ({tw.XMP: ("undefined", encoding.encode() + b"\0")} if k == 1 else {})

    TiffSlide(
        encode=jpeg_ycc, compression=JPEG, photometric=YCBCR, form=BIG, base=label, others=described
    ).write(path, levels)


def write_ndpi(path: Path, pixels: Pixels) -> None:
    """Hamamatsu NDPI: each level is one JPEG in one strip."""
    form = TiffForm(ndpi=True)
    with path.open("wb") as stream:
        stream.write(b"\0" * form.header_size)
        chain = []
        for k, level in enumerate(pyramid(pixels)):
            data = jpeg_ycc(level)
            at, length = stream.tell(), stream.write(data)
            height, width = level.shape[:2]
            tags: Tags = {
                tw.WIDTH: ("long", [width]),
                tw.HEIGHT: ("long", [height]),
                tw.BITS: ("short", [8, 8, 8]),
                tw.COMPRESSION: ("short", [JPEG]),
                tw.PHOTOMETRIC: ("short", [YCBCR]),
                tw.MAKE: ("ascii", "Hamamatsu"),
                tw.SAMPLES: ("short", [3]),
                tw.STRIP_OFFSETS: ("long", [at]),
                tw.STRIP_ROWS: ("long", [height]),
                tw.STRIP_LENGTHS: ("long", [length]),
                tw.SUBSAMPLING: ("short", [2, 2]),
                65420: ("long", [1]),
                65421: ("float", [20 / 2**k]),
                65424: ("signed", [0]),
            }
            chain.append(Directory(tags=tags | resolution(MPP * 2**k)))
        tw.write_directories(stream, chain, form)


def write_mirax(path: Path, pixels: Pixels, *, scanned: Rectangle | None = None) -> None:
    """MIRAX: an index file and a folder with metadata, index and data.

    Whole tiles, two zoom levels, no overlap. Tiles outside of `scanned` are left out; a scanner
    leaves out most of the glass.
    """
    height, width = (side // (2 * TILE) * 2 * TILE for side in pixels.shape[:2])
    folder = path.with_suffix("")
    folder.mkdir()
    columns, rows, slide_id = width // TILE, height // TILE, "0123456789ABCDEF" * 2
    data, pages = b"", []
    for k, level in enumerate(pyramid(pixels[:height, :width], 2)):
        entries = []
        for number, part in enumerate(tw.tiles_of(level, TILE)):
            row, column = divmod(number, columns >> k)
            if scanned and not _inside(scanned, (column << k) * TILE, (row << k) * TILE):
                continue
            coded = jpeg_ycc(part)
            entries.append(((row << k) * columns + (column << k), len(data), len(coded), 0))
            data += coded
        pages.append(
            struct.pack("<2i", len(entries), 0)
            + b"".join(struct.pack("<4i", *entry) for entry in entries)
        )
    begins = 5 + len(slide_id) + 8
    table, places = begins + 4 * len(pages), []
    body = b""
    for page in pages:
        places.append(table + len(body))
        body += struct.pack("<2i", 0, table + len(body) + 8) + page
    index = (
        b"01.02"
        + slide_id.encode()
        + struct.pack("<2i", begins, 0)
        + struct.pack(f"<{len(places)}i", *places)
        + body
    )
    levels = "".join(
        f"[LEVEL_{k}]\nOVERLAP_X = 0\nOVERLAP_Y = 0\nIMAGE_CONCAT_FACTOR = {min(k, 1)}\n"
        f"MICROMETER_PER_PIXEL_X = {MPP * 2**k}\nMICROMETER_PER_PIXEL_Y = {MPP * 2**k}\n"
        "IMAGE_FORMAT = JPEG\nIMAGE_FILL_COLOR_BGR = 16777215\nDIGITIZER_WIDTH = "
        f"{TILE}\nDIGITIZER_HEIGHT = {TILE}\n"
        for k in range(len(pages))
    )
    sections = "".join(f"HIER_0_VAL_{k}_SECTION = LEVEL_{k}\n" for k in range(len(pages)))
    text = (
        f"[GENERAL]\nSLIDE_ID = {slide_id}\nIMAGENUMBER_X = {columns}\nIMAGENUMBER_Y = "
        f"{rows}\nOBJECTIVE_MAGNIFICATION = 20\n"
        "[HIERARCHICAL]\nHIER_COUNT = 1\nNONHIER_COUNT = 0\nINDEXFILE = Index.dat\nHIER_0_NAME = "
        "Slide zoom level\n"
        f"HIER_0_COUNT = {len(pages)}\n{sections}[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = "
        f"Data0000.dat\n{levels}"
    )
    (folder / "Slidedat.ini").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (folder / "Index.dat").write_bytes(index)
    (folder / "Data0000.dat").write_bytes(data)
    Image.fromarray(pixels).reduce(8).save(path, "JPEG")


def _inside(area: Rectangle, x: int, y: int) -> bool:
    right, bottom = area.origin.x + area.size.width, area.origin.y + area.size.height
    return area.origin.x <= x < right and area.origin.y <= y < bottom


WRITERS: dict[str, Callable[[Path, Pixels], None]] = {
    "bif": write_bif,
    "mirax": write_mirax,
    "ndpi": write_ndpi,
    "scn": write_scn,
    "trestle": write_trestle,
}
"""Writers by name: `write(path, pixels)`."""
