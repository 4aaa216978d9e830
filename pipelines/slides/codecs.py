"""How a stored tile becomes pixels: a table of codecs by name, the same for TIFF and DICOM.

A name is written into every shard row, so it never changes its meaning:

    jpeg                      baseline JPEG; jpeg/2, jpeg/4, jpeg/8 where tiles are decoded smaller (DCT scaling)
    jpeg2000                  RGB after the stream's own colour transform (Aperio 33005, DICOM)
    jpeg2000-ycc              YCbCr (Aperio 33003); with halved chroma within one level of OpenSlide's pixels, else equal
    jpegls, raw, lzw, deflate interleaved RGB or RGBA; the last two with +delta for TIFF's horizontal predictor

Knows no slide and no file.
"""

from __future__ import annotations

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


def is_jpeg(codec: str) -> bool:
    """Whether the tiles are baseline JPEGs, at whatever scale they are decoded."""
    return codec.partition("/")[0] == "jpeg"


def decode(codec: str, stream: Buffer, *, out: NDArray[np.uint8]) -> None:
    """Decode one tile.

    Args:
        codec: its name.
        stream: the tile's bytes, standing on their own; empty for a tile that the format leaves out on purpose: it is glass.
        out: uint8 [H, W, 3], C-contiguous.

    Raises:
        ValueError: the stream is damaged or of another size.
    """
    if not len(stream):
        out[...] = 255
        return
    if is_jpeg(codec):
        jpeg.decode(stream, out=out, scale=int(codec[5:] or 1))
        return
    name, _, predictor = codec.partition("+")
    pixels = _DECODERS[name](bytes(stream), out.shape[0], out.shape[1])
    if pixels.shape[:2] != out.shape[:2] or pixels.shape[2:] not in ((3,), (4,)) or pixels.dtype != np.uint8:
        raise ValueError(f"holds {pixels.dtype} {pixels.shape} where uint8 {out.shape} is needed")
    if predictor:
        pixels = np.cumsum(pixels, axis=1, dtype=np.uint8)
    out[...] = pixels if pixels.shape[2] == 3 else _over_white(pixels)


def _over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _interleaved(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    samples, rest = divmod(len(data), height * width)
    if rest or samples not in (3, 4):
        raise ValueError(f"holds {len(data)} bytes where {height * width * 3} are needed")
    return np.frombuffer(data, np.uint8).reshape(height, width, samples)


def _deflate(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, height * width * 4)  # bounded: a few bytes can inflate to gigabytes
    except zlib.error as error:
        raise ValueError(f"can't be inflated ({error})") from error
    return _interleaved(found, height, width)


def _lzw(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    try:
        return _interleaved(bytes(imagecodecs.lzw_decode(data, out=height * width * 4)), height, width)
    except RuntimeError as error:
        raise ValueError(f"can't be unpacked ({error})") from error


def _jpegls(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    if data[:2] != jpeg.SOI or _frame_size(data) != (height, width):
        raise ValueError("is no JPEG-LS stream of the tile's size")
    try:
        return np.asarray(imagecodecs.jpegls_decode(data))
    except RuntimeError as error:
        raise ValueError(f"can't be decoded ({error})") from error


def _frame_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG-LS stream's SOF55 segment (ITU-T T.87)."""
    at = data.find(b"\xff\xf7", 2, 4096)
    return (
        None if at < 0 or len(data) < at + 9 else (int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9]))
    )


def _jpeg2000(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    begins = data.find(SOI, 0, 4096)  # a JP2 box may stand before the code stream
    size = [int.from_bytes(data[begins + k : begins + k + 4]) for k in (8, 12, 16, 20)] if begins >= 0 else [0] * 4
    if (size[1] - size[3], size[0] - size[2]) != (height, width):
        raise ValueError("is no JPEG 2000 stream of the tile's size")
    if EOI not in data[-4:]:  # openjpeg would fill what is missing with a blur
        raise ValueError("is cut off: it has no end marker")
    try:
        return np.asarray(imagecodecs.jpeg2k_decode(data))
    except RuntimeError as error:
        raise ValueError(f"can't be decoded ({str(error).strip()})") from error


_CHROMA = np.arange(256) - 128
_R_CR = (91881 * _CHROMA + 32768) >> 16
_G_CB = -22554 * _CHROMA + 32768
_G_CR = -46802 * _CHROMA
_B_CB = (116130 * _CHROMA + 32768) >> 16
"""JFIF's YCbCr in 16-bit fixed point, as libjpeg and OpenSlide compute it (1.402, 0.344136, 0.714136, 1.772)."""


def _chroma_is_reduced(data: bytes) -> bool:
    """Whether SIZ (ITU-T T.800 A.5.1) gives the second component fewer samples."""
    component = data.find(SOI, 0, 4096) + 42 + 3
    return data[component + 1 : component + 3] != b"\1\1"


def _jpeg2000_ycc(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    pixels = _jpeg2000(data, height, width)
    if _chroma_is_reduced(data):
        return pixels
    luma, blue, red = np.moveaxis(pixels, 2, 0)
    rgb = np.stack([luma + _R_CR[red], luma + ((_G_CB[blue] + _G_CR[red]) >> 16), luma + _B_CB[blue]], axis=2)
    return np.clip(rgb, 0, 255).astype(np.uint8)


_DECODERS: dict[str, Callable[[bytes, int, int], NDArray[np.uint8]]] = {
    "deflate": _deflate,
    "jpeg2000": _jpeg2000,
    "jpeg2000-ycc": _jpeg2000_ycc,
    "jpegls": _jpegls,
    "lzw": _lzw,
    "raw": _interleaved,
}
