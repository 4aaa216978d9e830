"""How a stored tile becomes pixels: a table of codecs by name, the same for TIFF and DICOM.

A name is written into every shard row, so it never changes its meaning:

    jpeg                 baseline JPEG; jpeg/2, jpeg/4, jpeg/8: decoded smaller (DCT scaling)
    jpeg2000             RGB after the stream's own colour transform (Aperio 33005, DICOM)
    jpeg2000-ycc         YCbCr (Aperio 33003); with halved chroma within one level of OpenSlide's
                         pixels, otherwise equal
    jpegls               interleaved RGB
    raw, lzw, deflate    interleaved RGB; +delta: TIFF's horizontal predictor; RGBA is +alpha, or
                         +premultiplied if colours were multiplied by alpha already

Knows no slide and no file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pipelines.slides import jpeg

Buffer = bytes | memoryview
SOI = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 code stream: SOC and SIZ markers."""
EOI = b"\xff\xd9"

_JPEG_SCALES = {"jpeg": 1, "jpeg/2": 2, "jpeg/4": 4, "jpeg/8": 8}


def is_jpeg(codec: str) -> bool:
    """Whether the tiles are baseline JPEGs, whatever the scale of decoding."""
    return codec in _JPEG_SCALES


def decode(codec: str, stream: Buffer, *, out: NDArray[np.uint8]) -> None:
    """Decode one tile.

    Args:
        codec: its name.
        stream: the complete stream of the tile; empty for a tile that the format leaves out on
            purpose: it is glass.
        out: uint8 [H, W, 3], C-contiguous.

    Raises:
        ValueError: the stream is damaged or of another size.
    """
    if not len(stream):
        out[...] = 255
        return
    if scale := _JPEG_SCALES.get(codec):
        jpeg.decode(stream, out=out, scale=scale)
        return
    name, *options = codec.split("+")
    if name in _UNPACKERS:
        _interleaved(_UNPACKERS[name], bytes(stream), options, out)
        return
    pixels = _DECODERS[name](bytes(stream), out.shape[0], out.shape[1])
    if pixels.shape != out.shape or pixels.dtype != np.uint8:
        raise ValueError(f"holds {pixels.dtype} {pixels.shape} where uint8 {out.shape} is needed")
    out[...] = pixels


def _interleaved(
    unpack: Callable[[bytes, int], bytes], data: bytes, options: list[str], out: NDArray[np.uint8]
) -> None:
    alpha = "alpha" in options or "premultiplied" in options
    shape = (*out.shape[:2], 4 if alpha else 3)
    needed = shape[0] * shape[1] * shape[2]
    found = unpack(data, needed + 1)  # one byte more shows a stream that is too long
    if len(found) != needed:
        held = f"{len(found)} bytes" if len(found) < needed else "more bytes"
        raise ValueError(f"holds {held} where {needed} are needed")
    pixels = np.frombuffer(found, np.uint8).reshape(shape)
    if "delta" in options:
        pixels = np.cumsum(pixels, axis=1, dtype=np.uint8)
    out[...] = _over_white(pixels, premultiplied="premultiplied" in options) if alpha else pixels


def _over_white(pixels: NDArray[np.uint8], *, premultiplied: bool) -> NDArray[np.uint8]:
    alpha = pixels[..., 3:].astype(np.uint16)
    colour = pixels[..., :3] if premultiplied else (pixels[..., :3] * alpha + 127) // 255
    return np.minimum(colour + (255 - alpha), 255).astype(np.uint8)


def _inflate(data: bytes, limit: int) -> bytes:
    try:
        # Bounded: a few bytes can inflate to gigabytes.
        return zlib.decompressobj().decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"can't be inflated ({error})") from error


def _unpack_lzw(data: bytes, limit: int) -> bytes:
    try:
        return bytes(imagecodecs.lzw_decode(data, out=limit))
    except RuntimeError as error:
        raise ValueError(f"can't be unpacked ({error})") from error


def _unchanged(data: bytes, limit: int) -> bytes:
    return data[:limit]


def _jpegls(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    if data[:2] != jpeg.SOI or _jpegls_frame(data) != (8, height, width, 3):
        raise ValueError("is not an 8-bit colour JPEG-LS stream of the tile's size")
    if EOI not in data[-4:]:  # charls would search for it for seconds
        raise ValueError("is cut off: it has no end marker")
    try:
        return np.asarray(imagecodecs.jpegls_decode(data))
    except RuntimeError as error:
        raise ValueError(f"can't be decoded ({error})") from error


def _jpegls_frame(data: bytes) -> tuple[int, ...] | None:
    """Bits, height, width and components of the SOF55 segment (ITU-T T.87); None if missing."""
    start = data.find(b"\xff\xf7", 2, 4096)
    if start < 0 or len(data) < start + 10:
        return None
    return struct.unpack_from(">BHHB", data, start + 4)


def _jpeg2000(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    if _jpeg2000_frame(data) != (height, width, 3):
        raise ValueError("is not a colour JPEG 2000 stream of the tile's size")
    if EOI not in data[-4:]:  # openjpeg would fill the missing part with a blur
        raise ValueError("is cut off: it has no end marker")
    try:
        return np.asarray(imagecodecs.jpeg2k_decode(data))
    except RuntimeError as error:
        raise ValueError(f"can't be decoded ({str(error).strip()})") from error


def _jpeg2000_frame(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and components of the SIZ segment (ITU-T T.800 A.5.1); None if missing."""
    start = data.find(SOI, 0, 4096)  # a JP2 box may precede the code stream
    if start < 0 or len(data) < start + 42:
        return None
    right, lower, left, upper = struct.unpack_from(">4I", data, start + 8)
    return lower - upper, right - left, struct.unpack_from(">H", data, start + 40)[0]


_CHROMA = np.arange(256) - 128
_R_CR = (91881 * _CHROMA + 32768) >> 16
_G_CB = -22554 * _CHROMA + 32768
_G_CR = -46802 * _CHROMA
_B_CB = (116130 * _CHROMA + 32768) >> 16
"""JFIF's YCbCr in 16-bit fixed point, as libjpeg and OpenSlide compute it: 1.402, 0.344136,
0.714136 and 1.772."""


def _chroma_is_reduced(data: bytes) -> bool:
    """Whether SIZ (ITU-T T.800 A.5.1) gives the second component fewer samples."""
    component = data.find(SOI, 0, 4096) + 42 + 3
    return data[component + 1 : component + 3] != b"\1\1"


def _jpeg2000_ycc(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    pixels = _jpeg2000(data, height, width)
    if _chroma_is_reduced(data):
        return pixels
    luma, blue, red = np.moveaxis(pixels, 2, 0)
    rgb = np.stack(
        [luma + _R_CR[red], luma + ((_G_CB[blue] + _G_CR[red]) >> 16), luma + _B_CB[blue]], axis=2
    )
    return np.clip(rgb, 0, 255).astype(np.uint8)


_UNPACKERS: dict[str, Callable[[bytes, int], bytes]] = {
    "deflate": _inflate,
    "lzw": _unpack_lzw,
    "raw": _unchanged,
}
_DECODERS: dict[str, Callable[[bytes, int, int], NDArray[np.uint8]]] = {
    "jpeg2000": _jpeg2000,
    "jpeg2000-ycc": _jpeg2000_ycc,
    "jpegls": _jpegls,
}
