"""JPEG tiles as TIFF stores them: abbreviated streams that share tables, made whole, and decoded as OpenSlide decodes.

Spec: TIFF Technical Note 2 (JPEG compression), ITU-T T.81 B.2, and the Adobe APP14 marker that tells RGB from YCbCr.
Knows no slide.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"


def _adobe_marker(ycbcr: bool) -> bytes:
    """APP14: the TIFF photometric tag decides the colour transform, as in libtiff; else libjpeg guesses from component ids."""
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if ycbcr else b"\x00")


def stream_header(tables: bytes | None, *, ycbcr: bool) -> bytes:
    """What replaces the SOI of a tile to make it a JPEG that stands on its own.

    Args:
        tables: value of the JPEGTables tag (`SOI ... EOI`), None where each tile carries its own.
        ycbcr: photometric interpretation: True for YCbCr (6), False for RGB (2).
    """
    body = b"" if not tables else tables.removeprefix(SOI).removesuffix(EOI)
    return SOI + body + _adobe_marker(ycbcr)


def check_start(tile: memoryview) -> None:
    """A tile whose SOI is replaced by `stream_header` is a JPEG that any decoder (a GPU's too) takes by itself.

    Raises:
        ValueError: the tile does not begin with an SOI marker.
    """
    begins = tile[:2].tobytes()
    if begins != SOI:
        raise ValueError(
            f"does not begin with a JPEG start marker but with {begins.hex() or 'nothing'}"
        )


def decode(stream: bytes | memoryview, *, out: NDArray[np.uint8], scale: int = 1) -> None:
    """Decode into `out`, uint8 [H, W, 3], C-contiguous, of exactly the stream's size divided by `scale`.

    Accurate DCT and smooth chroma upsampling: the pixels OpenSlide gives. At 1/2, 1/4 and 1/8 the inverse DCT gives fewer pixels.

    Raises:
        ValueError: the stream is damaged (also where libjpeg would only warn) or of another size.
    """
    height, width = out.shape[:2]
    least = {}
    if scale > 1:
        found = simplejpeg.decode_jpeg_header(stream)[:2]
        if found != (height * scale, width * scale):
            raise ValueError(
                f"is {found[1]} x {found[0]} px where the index says {width * scale} x {height * scale}"
            )
        least = {"min_height": height, "min_width": width}
    decoded = simplejpeg.decode_jpeg(
        stream, "RGB", fastdct=False, fastupsample=False, buffer=out, **least
    )
    if decoded.shape != out.shape:
        raise ValueError(
            f"is {decoded.shape[1]} x {decoded.shape[0]} px where the index says {width} x {height}"
        )
