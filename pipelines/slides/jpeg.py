"""JPEG tiles as TIFF stores them: abbreviated streams that share tables, completed and decoded.

Pixels are OpenSlide's. Specs: TIFF Technical Note 2 (JPEG compression), ITU-T T.81 B.2, and the
Adobe APP14 marker that distinguishes RGB from YCbCr. Knows no slide.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"


def _adobe_marker(ycbcr: bool) -> bytes:
    """APP14: the TIFF photometric tag decides the colour transform, as in libtiff.

    Without the marker libjpeg guesses from component ids.
    """
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if ycbcr else b"\x00")


def stream_header(tables: bytes | None, *, ycbcr: bool) -> bytes:
    """What replaces the SOI of a tile to make it a complete JPEG.

    Args:
        tables: value of the JPEGTables tag (`SOI ... EOI`), None if each tile carries its own.
        ycbcr: photometric interpretation: True for YCbCr (6), False for RGB (2).
    """
    body = b"" if not tables else tables.removeprefix(SOI).removesuffix(EOI)
    return SOI + body + _adobe_marker(ycbcr)


def check_start(tile: memoryview) -> None:
    """Require the SOI marker that `stream_header` will replace.

    Raises:
        ValueError: the tile does not begin with an SOI marker.
    """
    begins = tile[:2].tobytes()
    if begins != SOI:
        raise ValueError(
            f"does not begin with a JPEG start marker but with {begins.hex() or 'nothing'}"
        )


def decode(stream: bytes | memoryview, *, out: NDArray[np.uint8], scale: int = 1) -> None:
    """Decode into `out`.

    Accurate DCT and smooth chroma upsampling: OpenSlide's pixels. At 1/2, 1/4 and 1/8 the inverse
    DCT gives fewer pixels.

    Args:
        stream: a complete JPEG.
        out: uint8 [H, W, 3], C-contiguous, of exactly the stream's size divided by `scale`.
        scale: 1, 2, 4 or 8.

    Raises:
        ValueError: the stream is damaged (also if libjpeg would only warn) or of another size.
    """
    height, width = out.shape[:2]
    minimum = {}
    if scale > 1:
        found = simplejpeg.decode_jpeg_header(stream)[:2]
        _require_size(found, (height * scale, width * scale))
        minimum = {"min_height": height, "min_width": width}
    decoded = simplejpeg.decode_jpeg(
        stream, "RGB", fastdct=False, fastupsample=False, buffer=out, **minimum
    )
    _require_size(decoded.shape[:2], (height, width))


def _require_size(found: tuple[int, ...], expected: tuple[int, int]) -> None:
    """Compare (height, width) of a stream with what the tile index says."""
    if found != expected:
        shown = f"{found[1]} x {found[0]} px where the index says {expected[1]} x {expected[0]}"
        raise ValueError(f"is {shown}")
