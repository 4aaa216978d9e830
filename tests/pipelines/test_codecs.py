"""Codecs: their pixels, and that a stream of another size, kind or end is refused."""

from __future__ import annotations

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipelines.slides import codecs, jpeg
from pipelines.synthetic.tissue import generate_tile
from tests.support import dicom_slides, tiff_slides
from tests.support.tiff_slides import predicted

Pixels = NDArray[np.uint8]
TILE = generate_tile("gleason_4", np.random.default_rng(5), side=96)
ENCODED = {
    "raw": TILE.tobytes(),
    "deflate": tiff_slides.deflate(TILE),
    "deflate+delta": tiff_slides.deflate(predicted(TILE)),
    "lzw": tiff_slides.lzw(TILE),
    "lzw+delta": tiff_slides.lzw(predicted(TILE)),
    "jpegls": dicom_slides.jpegls(TILE),
    "jpeg2000": bytes(
        imagecodecs.jpeg2k_encode(TILE, codecformat="j2k", mct=True, reversible=True)
    ),
    "jpeg": tiff_slides.jpeg_ycc(TILE),
    "jpeg2000-ycc": tiff_slides.j2k_ycc(TILE),
}
LOSSLESS = [name for name in ENCODED if name not in ("jpeg", "jpeg2000-ycc")]


def decoded(
    codec: str, stream: bytes, height: int = 96, width: int = 96, *, before: int = 0
) -> Pixels:
    out = np.full((height, width, 3), before, np.uint8)
    codecs.decode(codec, stream, out=out)
    return out


@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_gives_back_what_was_stored(codec: str) -> None:
    np.testing.assert_array_equal(decoded(codec, ENCODED[codec]), TILE)


def test_jp2_boxes_may_stand_before_the_stream() -> None:
    boxed = bytes(imagecodecs.jpeg2k_encode(TILE, codecformat="jp2", mct=True, reversible=True))
    assert boxed[:4] != codecs.SOI
    np.testing.assert_array_equal(decoded("jpeg2000", boxed), TILE)


def test_ycc_is_jfifs() -> None:
    """Against Pillow's own conversion, which rounds chroma coarser."""
    ycc = np.ascontiguousarray(np.asarray(Image.fromarray(TILE).convert("YCbCr")))
    stream = bytes(imagecodecs.jpeg2k_encode(ycc, codecformat="j2k", mct=False, reversible=True))
    expected = np.asarray(Image.fromarray(ycc, "YCbCr").convert("RGB")).astype(int)
    assert np.abs(decoded("jpeg2000-ycc", stream) - expected).max() <= 1


def test_jpeg_is_libjpegs_slow_and_smooth() -> None:
    expected = np.asarray(imagecodecs.jpeg8_decode(ENCODED["jpeg"]))
    np.testing.assert_array_equal(decoded("jpeg", ENCODED["jpeg"]), expected)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_jpeg_is_shrunk_while_it_is_decoded(scale: int) -> None:
    small = decoded(f"jpeg/{scale}", ENCODED["jpeg"], 96 // scale, 96 // scale).astype(int)
    average = np.asarray(Image.fromarray(decoded("jpeg", ENCODED["jpeg"])).reduce(scale)).astype(
        int
    )
    assert np.abs(small - average).mean() < 2


@pytest.mark.parametrize("codec", ENCODED)
@pytest.mark.parametrize(("height", "width"), [(48, 96), (96, 48), (96, 97), (192, 96), (72, 96)])
def test_another_size_is_refused(codec: str, height: int, width: int) -> None:
    """72 x 96 px of RGBA would have as many bytes as 96 x 96 px of RGB have."""
    with pytest.raises(ValueError, match=r".+"):
        decoded(codec, ENCODED[codec], height, width)


@pytest.mark.parametrize("codec", ENCODED)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_off_is_refused(codec: str, share: float) -> None:
    """With a proper end too: decoders that go on to it fill the rest with grey or a blur."""
    stream = ENCODED[codec][: int(len(ENCODED[codec]) * share)]
    ends = [b"", b"\xff\xd9"] if codec.startswith("jpeg") else [b""]
    for end in ends:
        with pytest.raises(ValueError, match=r".+"):
            decoded(codec, stream + end)


@pytest.mark.parametrize("codec", ENCODED)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_noise_is_pixels_or_a_value_error(codec: str, data: st.DataObject) -> None:
    """Never another error, and never a pixel that the decoder left as it was before."""
    stream = bytearray(ENCODED[codec])
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decoded(codec, bytes(stream))
    except ValueError:
        with pytest.raises(ValueError, match=r".+"):
            decoded(codec, bytes(stream), before=255)
        return
    np.testing.assert_array_equal(found, decoded(codec, bytes(stream), before=255))


def test_empty_is_glass() -> None:
    assert (decoded("jpeg", b"") == 255).all()


def test_alpha_is_blended_over_white() -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (96, 96, 1), dtype=np.uint8)
    share = alpha / 255
    exact = TILE * share + 255 * (1 - share)
    straight = np.concatenate([TILE, alpha], axis=2)
    assert np.abs(decoded("raw+alpha", straight.tobytes()) - exact).max() <= 0.5 + 1e-9
    multiplied = np.concatenate([np.rint(TILE * share).astype(np.uint8), alpha], axis=2)
    assert (
        np.abs(
            decoded("deflate+delta+premultiplied", tiff_slides.deflate(predicted(multiplied)))
            - exact
        ).max()
        <= 0.5 + 1e-9
    )


@pytest.mark.parametrize(
    ("codec", "samples"),
    [("raw", 4), ("deflate", 4), ("lzw", 4), ("raw+alpha", 3), ("lzw+premultiplied", 3)],
)
def test_another_number_of_samples_is_refused(codec: str, samples: int) -> None:
    pixels = np.zeros((96, 96, samples), np.uint8)
    pack = {"raw": np.ndarray.tobytes, "deflate": tiff_slides.deflate, "lzw": tiff_slides.lzw}[
        codec.partition("+")[0]
    ]
    with pytest.raises(ValueError, match="bytes where"):
        decoded(codec, pack(pixels))


def test_bombs_are_refused_before_they_burst() -> None:
    with pytest.raises(ValueError, match="more bytes where"):
        decoded("deflate", zlib.compress(bytes(2**28)))
    stream = bytearray(ENCODED["jpeg2000"])
    struct.pack_into(">H", stream, 40, 16384)
    with pytest.raises(ValueError, match="not a colour JPEG 2000"):
        decoded("jpeg2000", bytes(stream))
    grey = bytes(imagecodecs.jpegls_encode(TILE[..., 0].copy()))
    with pytest.raises(ValueError, match="not an 8-bit colour JPEG-LS"):
        decoded("jpegls", grey)
    large = bytes(imagecodecs.jpeg8_encode(np.zeros((8000, 8000, 3), np.uint8), level=1))
    with pytest.raises(ValueError, match=r".+"):
        decoded("jpeg", large)


def test_header_makes_a_tile_whole() -> None:
    whole = tiff_slides.jpeg_ycc(TILE)
    tables, tile = tiff_slides.jpeg_tables(whole), tiff_slides.abbreviated(whole)
    with pytest.raises(ValueError, match=r".+"):
        decoded("jpeg", tile)
    stream = jpeg.stream_header(tables, ycbcr=True) + tile[2:]
    np.testing.assert_array_equal(decoded("jpeg", stream), decoded("jpeg", whole))
