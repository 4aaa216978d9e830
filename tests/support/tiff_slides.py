"""Small TIFF slides of every kind that scanners and converters write, tag by tag."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.sax.saxutils import quoteattr

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tests.support import tiff_writer as tw
from tests.support.tiff_writer import Directory, TiffForm, Values

Pixels = NDArray[np.uint8]
Encode = Callable[[Pixels], bytes]
Tags = dict[int, tuple[str, Values]]
TILE = 128
MPP = 0.5

JPEG, LZW, RAW, DEFLATE, APERIO_YCC, APERIO_RGB = 7, 5, 1, 8, 33003, 33005
RGB, YCBCR = 2, 6


def pyramid(pixels: Pixels, levels: int = 3) -> list[Pixels]:
    """Levels, each half as wide as the one before, rounded down."""
    found = [pixels]
    while len(found) < levels:
        height, width = found[-1].shape[:2]
        found.append(
            np.asarray(
                Image.fromarray(found[-1]).resize((width // 2, height // 2), Image.Resampling.BOX)
            )
        )
    return found


# ---- how a tile is stored ------------------------------------------------------------------------


def jpeg_ycc(pixels: Pixels, *, subsampling: str = "420") -> bytes:
    """A whole JPEG in YCbCr, as libjpeg writes it, with its JFIF marker."""
    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=85, colorsubsampling=subsampling
        )
    )


def jpeg_rgb(pixels: Pixels) -> bytes:
    """A JPEG whose components are red, green and blue (Aperio's "JPEG/RGB")."""
    return bytes(imagecodecs.jpeg8_encode(pixels, level=85, colorspace="RGB", outcolorspace="RGB"))


def segments(stream: bytes) -> list[tuple[int, bytes]]:
    """Marker and whole segment of each part of a JPEG, the scan with all that follows last."""
    found, at = [], 2
    while stream[at + 1] != 0xDA:
        length = 2 + int.from_bytes(stream[at + 2 : at + 4])
        found.append((stream[at + 1], stream[at : at + length]))
        at += length
    return [*found, (0xDA, stream[at:])]


def jpeg_tables(stream: bytes) -> bytes:
    """Value of the JPEGTables tag for tiles like this one: quantisation and Huffman tables."""
    return (
        b"\xff\xd8"
        + b"".join(part for marker, part in segments(stream) if marker in (0xDB, 0xC4))
        + b"\xff\xd9"
    )


def abbreviated(stream: bytes) -> bytes:
    """The tile without what is in `jpeg_tables`, and without the application markers."""
    return b"\xff\xd8" + b"".join(
        part for marker, part in segments(stream) if marker not in (0xDB, 0xC4, 0xE0, 0xEE)
    )


def j2k_rgb(pixels: Pixels) -> bytes:
    """JPEG 2000 code stream with its own colour transform."""
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=42, codecformat="j2k", mct=True))


def j2k_ycc(pixels: Pixels) -> bytes:
    """JPEG 2000 code stream of Y, Cb and Cr."""
    ycc = np.ascontiguousarray(np.asarray(Image.fromarray(pixels).convert("YCbCr")))
    return bytes(imagecodecs.jpeg2k_encode(ycc, level=42, codecformat="j2k", mct=False))


def j2k_ycc_422(pixels: Pixels) -> bytes:
    """The same with chroma of half the width, which `opj_compress` (OpenJPEG's command) writes."""
    height, width = pixels.shape[:2]
    luma, blue, red = np.moveaxis(np.asarray(Image.fromarray(pixels).convert("YCbCr")), 2, 0)
    halved = [
        np.asarray(Image.fromarray(plane).resize((width // 2, height), Image.Resampling.BOX))
        for plane in (blue, red)
    ]
    with tempfile.TemporaryDirectory() as folder:
        raw, coded = Path(folder) / "tile.raw", Path(folder) / "tile.j2k"
        raw.write_bytes(b"".join(plane.tobytes() for plane in (luma, *halved)))
        form = f"{width},{height},3,8,u@1x1:2x1:2x1"
        command = [
            "opj_compress",
            "-i",
            str(raw),
            "-o",
            str(coded),
            "-F",
            form,
            "-mct",
            "0",
            "-r",
            "4",
        ]
        subprocess.run(command, check=True, capture_output=True)
        return coded.read_bytes()


def has_opj_compress() -> bool:
    """Whether OpenJPEG's command is at hand."""
    return shutil.which("opj_compress") is not None


def predicted(pixels: Pixels) -> Pixels:
    """TIFF's horizontal predictor: each sample less the one to its left."""
    return np.diff(pixels, axis=1, prepend=pixels[:, :1] * 0)


def lzw(pixels: Pixels) -> bytes:
    """LZW as TIFF has it."""
    return bytes(imagecodecs.lzw_encode(pixels.tobytes()))


def deflate(pixels: Pixels) -> bytes:
    """zlib stream."""
    return zlib.compress(pixels.tobytes())


# ---- how a file is laid out ----------------------------------------------------------------------


@dataclass(kw_only=True)
class TiffSlide:
    """How a slide is written.

    Attributes:
        encode: a tile to its bytes.
        compression, photometric: TIFF's numbers.
        form: of the file.
        tile: side of a tile.
        base: further tags of level 0; those of the other levels are `others`.
        others: further tags of level k > 0.
        predictor: whether the horizontal predictor is noted.
        sub: whether smaller levels are sub-directories of level 0.
        padded: whether the levels' sizes are given in whole tiles, as Philips does.
        absent: tiles without data, as (level, number).
    """

    encode: Encode
    compression: int
    photometric: int = RGB
    form: TiffForm = field(default_factory=TiffForm)
    tile: int = TILE
    base: Tags = field(default_factory=dict)
    others: Callable[[int], Tags] = lambda k: {tw.SUBFILE: ("long", [1])}
    predictor: bool = False
    sub: bool = False
    padded: bool = False
    absent: frozenset[tuple[int, int]] = frozenset()

    def write(self, path: Path, levels: Sequence[Pixels]) -> None:
        """Write the levels' tiles, and behind them the directories."""
        with path.open("wb") as stream:
            stream.write(b"\0" * self.form.header_size)
            chain = []
            for k, pixels in enumerate(levels):
                offsets, lengths = [], []
                for number, part in enumerate(tw.tiles_of(pixels, self.tile)):
                    data = b"" if (k, number) in self.absent else self.encode(part)
                    offsets.append(stream.tell() if data else 0)
                    lengths.append(stream.write(data))
                ranges: Tags = {
                    tw.TILE_OFFSETS: ("long8" if self.form.big else "long", offsets),
                    tw.TILE_LENGTHS: ("long", lengths),
                }
                more = self.others(k) if k else self.base
                chain.append(Directory(tags=self._picture(pixels) | ranges | more))
            if self.sub:
                chain[0].subs, chain = chain[1:], chain[:1]
            tw.write_directories(stream, chain, self.form)

    def _picture(self, pixels: Pixels) -> Tags:
        height, width, samples = pixels.shape
        if self.padded:
            height, width = (-(-side // self.tile) * self.tile for side in (height, width))
        tags: Tags = {
            tw.WIDTH: ("long", [width]),
            tw.HEIGHT: ("long", [height]),
            tw.BITS: ("short", [8] * samples),
            tw.COMPRESSION: ("short", [self.compression]),
            tw.PHOTOMETRIC: ("short", [self.photometric]),
            tw.SAMPLES: ("short", [samples]),
            tw.PLANAR: ("short", [1]),
            tw.TILE_WIDTH: ("long", [self.tile]),
            tw.TILE_HEIGHT: ("long", [self.tile]),
        }
        if self.photometric == YCBCR:
            tags[tw.SUBSAMPLING] = ("short", [2, 2])
        if self.predictor:
            tags[tw.PREDICTOR] = ("short", [2])
        return tags


def resolution(mpp: float) -> Tags:
    """Tags with the scale of a level."""
    per_cm = [round(1e7 / mpp), 1000]
    return {
        tw.X_RESOLUTION: ("ratio", per_cm),
        tw.Y_RESOLUTION: ("ratio", per_cm),
        tw.RESOLUTION_UNIT: ("short", [3]),
    }


def profile(icc: bytes) -> Tags:
    """Tag with a colour profile, none where it is empty."""
    return {tw.ICC: ("undefined", icc)} if icc else {}


def write_generic(path: Path, pixels: Pixels, *, icc: bytes = b"", **how: object) -> None:
    """A pyramidal TIFF that says no more than the TIFF specification."""
    base = resolution(MPP) | profile(icc) | how.pop("base", {})  # type: ignore[operator]
    TiffSlide(base=base, **how).write(path, pyramid(pixels))  # type: ignore[arg-type]


def write_aperio(
    path: Path,
    pixels: Pixels,
    *,
    encode: Encode,
    compression: int,
    photometric: int,
    icc: bytes = b"",
    tables: bool = False,
) -> None:
    """An SVS; with `tables` its tiles are abbreviated JPEGs that share their tables, as Aperio's
    are."""
    levels = pyramid(pixels)
    shared: Tags = (
        {tw.JPEG_TABLES: ("undefined", jpeg_tables(encode(pixels[:TILE, :TILE])))} if tables else {}
    )

    def description(k: int) -> Tags:
        size, small = ("{1}x{0}".format(*level.shape) for level in (pixels, levels[k]))
        text = f"Aperio Image Library v12.0.0\r\n{size} ({TILE}x{TILE})" + (
            f" -> {small}" if k else ""
        )
        return shared | {
            tw.DESCRIPTION: ("ascii", f"{text}|AppMag = 20|MPP = {MPP}|ScannerType = AT2")
        }

    TiffSlide(
        encode=(lambda part: abbreviated(encode(part))) if tables else encode,
        compression=compression,
        photometric=photometric,
        base=description(0) | profile(icc),
        others=description,
    ).write(path, levels)


def write_rgba(path: Path, pixels: Pixels, *, extra: int, icc: bytes = b"") -> None:
    """A TIFF with an alpha channel that falls from left to right.

    `extra`: 0 unspecified, 1 premultiplied, 2 unassociated.
    """
    height, width = pixels.shape[:2]
    alpha = np.broadcast_to(np.linspace(255, 0, width).astype(np.uint8), (height, width))[..., None]
    colour = (pixels.astype(np.uint16) * alpha // 255).astype(np.uint8) if extra != 2 else pixels
    rgba = np.concatenate([colour, alpha], axis=2)
    levels = [rgba, np.ascontiguousarray(rgba[: height // 2 * 2 : 2, : width // 2 * 2 : 2])]
    tags: Tags = {tw.EXTRA_SAMPLES: ("short", [extra])}
    slide = TiffSlide(
        encode=deflate,
        compression=DEFLATE,
        base=resolution(MPP) | profile(icc) | tags,
        others=lambda k: tags | {tw.SUBFILE: ("long", [1])},
    )
    slide.write(path, levels)


def ome_xml(images: Sequence[Mapping[str, object]], *, objectives: Sequence[float] = ()) -> str:
    """OME-XML of several images.

    Attributes of their Pixels, and where given their `Name`, `IFD` of TiffData and the ID of the
    `Objective`.
    """
    lenses = "".join(
        f'<Objective ID="Objective:{k}" NominalMagnification="{at}"/>'
        for k, at in enumerate(objectives)
    )
    parts = []
    for image in images:
        settings = (
            f'<ObjectiveSettings ID="{image["Objective"]}"/>' if image.get("Objective") else ""
        )
        data = (
            f'<TiffData IFD="{image["IFD"]}" PlaneCount="1"/>' if "IFD" in image else "<TiffData/>"
        )
        pixels = " ".join(
            f'{key}="{value}"'
            for key, value in image.items()
            if key not in ("Objective", "IFD", "Name")
        )
        name = f"Name={quoteattr(str(image.get('Name', '')))}"
        parts.append(f"<Image {name}>{settings}<Pixels {pixels}>{data}</Pixels></Image>")
    space = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    return f'<OME xmlns="{space}"><Instrument>{lenses}</Instrument>{"".join(parts)}</OME>'


def write_ome(path: Path, pixels: Pixels, *, icc: bytes = b"") -> None:
    """An OME-TIFF whose smaller levels are sub-directories."""
    height, width = pixels.shape[:2]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME '
        'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Instrument ID="Instrument:0"><Microscope Manufacturer="Maker" Model="One"/>'
        '<Objective ID="Objective:0" NominalMagnification="20.0"/></Instrument>'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'Interleaved="true" '
        f'SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1" '
        f'PhysicalSizeX="{MPP}" PhysicalSizeXUnit="µm" PhysicalSizeY="{MPP}" '
        'PhysicalSizeYUnit="µm">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>'
        "</Pixels></Image></OME>"
    )
    TiffSlide(
        encode=lambda part: deflate(predicted(part)),
        compression=DEFLATE,
        predictor=True,
        sub=True,
        base=profile(icc)
        | {tw.DESCRIPTION: ("ascii", xml), tw.SOFTWARE: ("ascii", "OME Bio-Formats 7")},
    ).write(path, pyramid(pixels))


def write_philips(path: Path, pixels: Pixels, *, icc: bytes = b"") -> None:
    """A Philips TIFF: levels padded to whole tiles, glass left out."""
    levels = pyramid(pixels)

    def spacing(k: int) -> str:
        return f'"{MPP / 1000 * 2**k:.6f}" "{MPP / 1000 * 2**k:.6f}"'

    def attribute(name: str, value: str) -> str:
        form = 'Group="0x0028" Element="0x0030" PMSVR="IString"'
        return f'<Attribute Name="{name}" {form}>{value}</Attribute>'

    representations = "".join(
        '<DataObject ObjectType="PixelDataRepresentation">'
        f"{attribute('DICOM_PIXEL_SPACING', spacing(k))}"
        f"{attribute('PIIM_PIXEL_DATA_REPRESENTATION_NUMBER', str(k))}</DataObject>"
        for k in range(len(levels))
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + attribute("DICOM_MANUFACTURER", "PHILIPS")
        + '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" '
        'PMSVR="IDataObjectArray"><Array>'
        + f'<DataObject ObjectType="DPScannedImage">{attribute("PIM_DP_IMAGE_TYPE", "WSI")}'
        + attribute("DICOM_PIXEL_SPACING", spacing(0))
        + '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" '
        'Element="0x8B01" PMSVR="IDataObjectArray">'
        + f"<Array>{representations}</Array></Attribute></DataObject></Array></Attribute>"
        "</DataObject>"
    )
    columns = -(-pixels.shape[1] // TILE)
    TiffSlide(
        encode=lambda part: abbreviated(jpeg_ycc(part)),
        compression=JPEG,
        photometric=YCBCR,
        padded=True,
        absent=frozenset({(0, 0), (0, columns), (1, 0)}),
        base={tw.DESCRIPTION: ("ascii", xml), tw.SOFTWARE: ("ascii", "Philips DP v1.0")}
        | profile(icc)
        | _tables(pixels),
        others=lambda k: (
            {tw.SUBFILE: ("long", [1]), tw.SOFTWARE: ("ascii", "Philips DP v1.0")} | _tables(pixels)
        ),
    ).write(path, levels)


def _tables(pixels: Pixels) -> Tags:
    return {tw.JPEG_TABLES: ("undefined", jpeg_tables(jpeg_ycc(pixels[:TILE, :TILE])))}


def write_shared_tile(path: Path, *, width: int, height: int, size: int = 0) -> Path:
    """A TIFF of one level in 4096-px tiles that are all the same 49 kB of black, in a file of at
    least `size` bytes."""
    data, count = zlib.compress(bytes(4096 * 4096 * 3)), -(-width // 4096) * -(-height // 4096)
    tags: Tags = {
        **{tag: ("long", [value]) for tag, value in ((tw.WIDTH, width), (tw.HEIGHT, height))},
        **{tag: ("long", [4096]) for tag in (tw.TILE_WIDTH, tw.TILE_HEIGHT)},
        **{
            tag: ("short", [value])
            for tag, value in ((tw.COMPRESSION, DEFLATE), (tw.PHOTOMETRIC, RGB))
        },
        **{tag: ("short", [value]) for tag, value in ((tw.SAMPLES, 3), (tw.PLANAR, 1))},
        tw.BITS: ("short", [8, 8, 8]),
        tw.TILE_OFFSETS: ("long", np.full(count, BIG.header_size)),
        tw.TILE_LENGTHS: ("long", np.full(count, len(data))),
    }
    with path.open("wb") as stream:
        stream.write(bytes(BIG.header_size) + data)
        stream.truncate(max(size, stream.tell()))
        tw.write_directories(stream, [Directory(tags=tags | resolution(MPP))], BIG)
    return path


BIG, MOTOROLA = TiffForm(big=True), TiffForm(order=">")

WRITERS: dict[str, Callable[..., None]] = {
    "svs-jpeg": partial(
        write_aperio, encode=jpeg_ycc, compression=JPEG, photometric=YCBCR, tables=True
    ),
    "svs-jpeg-rgb": partial(
        write_aperio, encode=jpeg_rgb, compression=JPEG, photometric=RGB, tables=True
    ),
    "svs-33003": partial(write_aperio, encode=j2k_ycc, compression=APERIO_YCC, photometric=RGB),
    "svs-33003-422": partial(
        write_aperio, encode=j2k_ycc_422, compression=APERIO_YCC, photometric=RGB
    ),
    "svs-33005": partial(write_aperio, encode=j2k_rgb, compression=APERIO_RGB, photometric=RGB),
    "tiff-jpeg": partial(write_generic, encode=jpeg_ycc, compression=JPEG, photometric=YCBCR),
    "tiff-jpeg-422": partial(
        write_generic,
        encode=partial(jpeg_ycc, subsampling="422"),
        compression=JPEG,
        photometric=YCBCR,
    ),
    "tiff-jpeg-444": partial(
        write_generic,
        encode=partial(jpeg_ycc, subsampling="444"),
        compression=JPEG,
        photometric=YCBCR,
    ),
    "bigtiff-jpeg": partial(
        write_generic, encode=jpeg_ycc, compression=JPEG, photometric=YCBCR, form=BIG
    ),
    "tiff-deflate": partial(
        write_generic,
        encode=lambda part: deflate(predicted(part)),
        compression=DEFLATE,
        predictor=True,
        form=MOTOROLA,
    ),
    "tiff-lzw": partial(write_generic, encode=lzw, compression=LZW),
    "tiff-lzw-delta": partial(
        write_generic, encode=lambda part: lzw(predicted(part)), compression=LZW, predictor=True
    ),
    "tiff-raw": partial(write_generic, encode=np.ndarray.tobytes, compression=RAW),
    "tiff-rgba": partial(write_rgba, extra=2),
    "tiff-rgba-premultiplied": partial(write_rgba, extra=1),
    "tiff-rgba-unspecified": partial(write_rgba, extra=0),
    "ome-tiff": write_ome,
    "philips": write_philips,
}
"""Writers by name: `write(path, pixels, icc=b"")`."""
