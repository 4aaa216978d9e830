"""Every format: the pixels of an independent reader, as regions, shrunk, and as patches.

On the local disk and in S3. The oracle is OpenSlide if it opens the file; else wsidicom or the
picture that was stored without loss.
"""

from __future__ import annotations

import http.server
import re
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import wsidicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app.uploads import reception
from pipelines import discovery, storage
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import PatchBatch, decode_patches, fetch_shards, resample
from pipelines.shards import PIXELS, TILES
from pipelines.slides import formats
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Point, Rectangle, Size
from pipelines.slides.opening import open_slide
from pipelines.slides.slide import Slide
from pipelines.slides.tiled import TiledSlide
from tests.pipelines.conftest import upload
from tests.pipelines.test_slide import openslide_pixels
from tests.support import vendor_slides
from tests.support.formats import FORMATS, picture, write_huge_tiff, write_slide
from tests.support.shared_data import needs_shared_data, shared_data
from tests.support.tiff_slides import has_opj_compress, pyramid

Pixels = NDArray[np.uint8]
Find = Callable[[str], Path]

OFF_BY_ONE = {"svs-33003-422", "tiff-rgba", "tiff-rgba-premultiplied", "tiff-rgba-unspecified"}
"""Where OpenSlide rounds twice: in upsampling chroma, and in taking alpha out of colours that we
put over white at once."""
STAGED = {"dicom-jpeg-no-table"}
"""Read in place from a local disk, where all of a file can be walked through; from S3 they are
staged."""
SPEC = PatchSpec(size=64, mpp=1.0, min_tissue=0.1)

every_format = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name == "svs-33003-422" and not has_opj_compress(),
                reason="opj_compress (libopenjp2-tools) writes this one",
            ),
        )
        for name in FORMATS
    ],
)


@lru_cache(maxsize=2)
def oracle(name: str, path: Path) -> tuple[Pixels, ...]:
    """All levels as the independent reader shows them."""
    if name in (
        "tiff-deflate",
        "ome-tiff",
    ):  # OpenSlide does not open big-endian TIFF, and of OME-TIFF the first level only
        return tuple(pyramid(picture()))
    if name == "dicom-jpegls":
        with wsidicom.WsiDicom.open(path) as series:
            levels = [(level.level, level.size.width, level.size.height) for level in series.levels]
            return tuple(
                np.asarray(series.read_region((0, 0), k, (w, h)).convert("RGB"))
                for k, w, h in levels
            )
    if (
        name == "ome-jpeg"
    ):  # the first level only; sub-directories hold the JPEGs that are levels of this plain TIFF
        with tempfile.TemporaryDirectory() as folder:
            plain = oracle("tiff-jpeg", write_slide("tiff-jpeg", Path(folder)))
        with openslide.OpenSlide(path) as handle:
            return (openslide_pixels(handle, Point(0, 0), 0, Size(*handle.dimensions)), *plain[1:])
    with openslide.OpenSlide(path / "level-0.dcm" if path.is_dir() else path) as handle:
        sizes = [Size(*size) for size in handle.level_dimensions]
        return tuple(openslide_pixels(handle, Point(0, 0), k, size) for k, size in enumerate(sizes))


def window(pixels: Pixels, x: int, y: int, size: Size) -> Pixels:
    """Part of a level, white outside."""
    out = np.full((*size.shape, 3), 255, np.uint8)
    x0, y0, x1, y1 = (
        max(x, 0),
        max(y, 0),
        min(x + size.width, pixels.shape[1]),
        min(y + size.height, pixels.shape[0]),
    )
    if x0 < x1 and y0 < y1:
        out[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[y0:y1, x0:x1]
    return out


def check_pixels(ours: Pixels, theirs: Pixels, name: str) -> None:
    difference = np.abs(ours.astype(np.int16) - theirs)
    assert difference.max(initial=0) <= (1 if name in OFF_BY_ONE else 0)


def check_near(ours: Pixels, average: Pixels) -> None:
    """Decoding at 1/2, 1/4 or 1/8 against decoding whole and averaging.

    By how much they may differ.
    """
    assert np.abs(ours.astype(int) - average).mean() < 1.5
    assert np.abs(ours.mean(axis=(0, 1)) - average.mean(axis=(0, 1))).max() < 0.5


def batch_of(slide: Slide) -> tuple[PatchBatch, dict[str, object]]:
    """All patches of a slide, and the first row of its shard table."""
    shards = index_slide(slide, SPEC, organisation="org", shard_side=4).shards
    return decode_patches(fetch_shards(shards)), shards.slice(0, 1).to_pylist()[0]


@every_format
def test_facts(name: str, small_slide: Find) -> None:
    with open_slide(str(small_slide(name))) as slide:
        assert (slide.vendor, slide.mpp, slide.staged) == (FORMATS[name].vendor, 0.5, False)
        assert isinstance(slide, TiledSlide) == FORMATS[name].direct
        levels = oracle(name, small_slide(name))
        assert [level.size.shape for level in slide.levels] == [level.shape[:2] for level in levels]
        if FORMATS[name].lossless:
            assert all(
                np.array_equal(a, b) for a, b in zip(levels, pyramid(picture()), strict=True)
            )


@every_format
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_regions_are_the_oracles(name: str, small_slide: Find, data: st.DataObject) -> None:
    """Any level, offset and size, over the edges too."""
    levels = oracle(name, small_slide(name))
    with open_slide(str(small_slide(name))) as slide:
        level = data.draw(st.sampled_from(slide.levels))
        # Points at which pixels of the level begin: between them OpenSlide interpolates
        # or rounds in its own way.
        x, y = (
            data.draw(st.integers(-200, side + 50))
            for side in (level.size.width, level.size.height)
        )
        size = Size(data.draw(st.integers(1, 400)), data.draw(st.integers(1, 400)))
        origin = Point(round(x * level.downsample), round(y * level.downsample))
        ours = slide.read_region(origin, level.index, size)
        if FORMATS[name].direct:
            at = [round(side / level.downsample) for side in (origin.x, origin.y)]
            check_pixels(ours, window(levels[level.index], *at, size), name)
        else:
            with openslide.OpenSlide(small_slide(name)) as handle:
                check_pixels(ours, openslide_pixels(handle, origin, level.index, size), name)


@every_format
def test_shrunk_while_decoded_is_near_the_average(name: str, small_slide: Find) -> None:
    with open_slide(str(small_slide(name))) as slide:
        assert slide.scales(0)[-1] == 1
        assert (len(slide.scales(0)) > 1) == (
            isinstance(slide, TiledSlide) and slide.indexes[0].store.codec == "jpeg"
        )
        for scale in slide.scales(0)[:-1]:
            size = Size(slide.size.width // scale, slide.size.height // scale)
            ours = slide.read_region(Point(0, 0), 0, size, scale=scale)
            whole = slide.read_region(Point(0, 0), 0, Size(size.width * scale, size.height * scale))
            check_near(ours, np.asarray(Image.fromarray(whole).reduce(scale)))


# Without 4:2:2: its chroma is shrunk to half the width that there is room for, and small parts
# differ by more.
@pytest.mark.parametrize(
    "name", ["svs-jpeg", "svs-jpeg-rgb", "tiff-jpeg-444", "philips", "ome-jpeg", "dicom-jpeg"]
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_scale_is_near_the_average(name: str, small_slide: Find, data: st.DataObject) -> None:
    """Any level, scale, offset and size, over the edges too, against the independent reader's whole
    level, area-averaged."""
    levels = oracle(name, small_slide(name))
    with open_slide(str(small_slide(name))) as slide:
        level = data.draw(st.sampled_from(slide.levels))
        scale = data.draw(st.sampled_from(slide.scales(level.index)))
        whole = level.size.shrunk(scale)
        x, y = (data.draw(st.integers(-30, side + 10)) for side in (whole.width, whole.height))
        size = Size(
            data.draw(st.integers(32, 300)), data.draw(st.integers(32, 300))
        )  # of a few pixels the mean says nothing
        # The nearest pixel is taken: any point less than half a pixel off gives the same.
        pixel = scale * level.downsample
        near = max(0, int(pixel / 2) - 1)
        origin = Point(*(round(at * pixel) + data.draw(st.integers(-near, near)) for at in (x, y)))
        ours = slide.read_region(origin, level.index, size, scale=scale)
        pixels = levels[level.index][: whole.height * scale, : whole.width * scale]
        average = window(np.asarray(Image.fromarray(pixels).reduce(scale)), x, y, size)
        check_near(ours, average)


@every_format
def test_patches_are_regions(name: str, small_slide: Find) -> None:
    with open_slide(str(small_slide(name))) as slide:
        batch, row = batch_of(slide)
        assert row["transport"] == (TILES if FORMATS[name].direct else PIXELS)
        assert len(batch["patch"]) > 10
        level, side = int(str(row["level"])), int(str(row["read_size"]))
        for k in range(len(batch["patch"])):
            region = slide.read_region(
                Point(int(batch["x"][k]), int(batch["y"][k])), level, Size(side, side)
            )
            expected = np.empty((1, SPEC.size, SPEC.size, 3), np.uint8)
            resample(region[None], expected)
            np.testing.assert_array_equal(batch["patch"][k], expected[0])


@every_format
def test_s3_shows_the_same(name: str, small_slide: Find, s3_bucket: str) -> None:
    path = small_slide(name)
    uri = upload(path, s3_bucket)
    with open_slide(str(path)) as local, open_slide(uri) as remote:
        assert remote.staged == (not FORMATS[name].direct or name in STAGED)
        assert (remote.vendor, remote.mpp, remote.levels == local.levels) == (
            local.vendor,
            local.mpp,
            True,
        )
        for level in local.levels:
            ours, theirs = (
                slide.read_region(Point(0, 0), level.index, level.size) for slide in (remote, local)
            )
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(batch_of(remote)[0]["patch"], batch_of(local)[0]["patch"])


class _Objects(http.server.BaseHTTPRequestHandler):
    """One local file as an S3 object, by range.

    Endpoints for tests keep objects in memory, where 5 GB have no place.
    """

    path_of: Path

    def do_GET(self) -> None:
        """GetObject."""
        size = self.path_of.stat().st_size
        first, last = (
            int(text) for text in self.headers["Range"].removeprefix("bytes=").split("-")
        )
        last = min(last, size - 1)
        with self.path_of.open("rb") as stream:
            stream.seek(first)
            body = stream.read(last + 1 - first)
        self.send_response(206)
        for key, value in {
            "Content-Range": f"bytes {first}-{last}/{size}",
            "Content-Length": str(len(body)),
            "ETag": '"one"',
            "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT",
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *values: object) -> None:
        """Nothing is logged."""


@pytest.fixture(scope="module", params=["generic-tiff", "aperio"])
def huge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    aperio = request.param == "aperio"
    path = tmp_path_factory.mktemp("huge") / ("huge.svs" if aperio else "huge.tiff")
    write_huge_tiff(path, gigabytes=5.2, aperio=aperio)
    return path


@pytest.fixture
def huge_in_s3(huge: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    handler = type("Objects", (_Objects,), {"path_of": huge})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "eu-central-1")
    storage.forget_stores()
    yield f"s3://bucket/{huge.name}"
    storage.forget_stores()
    server.shutdown()
    server.server_close()


def test_beyond_4_gib(huge: Path, huge_in_s3: str) -> None:
    rng = np.random.default_rng(0)
    with (
        open_slide(str(huge)) as local,
        open_slide(huge_in_s3) as remote,
        openslide.OpenSlide(huge) as handle,
    ):
        assert isinstance(local, TiledSlide)
        assert local.vendor == handle.properties[openslide.PROPERTY_NAME_VENDOR]
        assert local.indexes[0].offsets.max() > 2**32
        assert huge.stat().st_blocks * 512 < 100e6
        for level in local.levels:
            places = [
                Point(
                    *(int(side * level.downsample) for side in rng.integers(0, level.size.width, 2))
                )
                for _ in range(4)
            ]
            end = round((level.size.width - 200) * level.downsample)
            for origin in (*places, Point(end, end)):
                ours = local.read_region(origin, level.index, Size(300, 300))
                np.testing.assert_array_equal(
                    ours, openslide_pixels(handle, origin, level.index, Size(300, 300))
                )
                np.testing.assert_array_equal(
                    remote.read_region(origin, level.index, Size(300, 300)), ours
                )
        with storage.metered() as meter:
            assert (remote.thumbnail(512) == local.thumbnail(512)).all()
        assert meter.fetched < 10e6
        for slide in (local, remote):
            check_far_shard(slide, handle)


def check_far_shard(slide: Slide, handle: openslide.OpenSlide) -> None:
    """The patches of a shard whose tiles are beyond 4 GiB are OpenSlide's."""
    table = index_slide(
        slide, PatchSpec(size=256, mpp=0.25), organisation="org", shard_side=4
    ).shards
    far = [
        row for row, offsets in enumerate(table["tile_offset"].to_pylist()) if min(offsets) > 2**32
    ]
    counts = table["n_patches"].to_pylist()
    shard = table.slice(max(far, key=counts.__getitem__), 1)
    assert set(shard["transport"].to_pylist()) == {TILES}
    batch = decode_patches(fetch_shards(shard))
    assert len(batch["patch"]) == 16
    assert all(patch.std() > 5 for patch in batch["patch"]), (
        "glass would look the same from anywhere"
    )
    for x, y, patch in zip(batch["x"], batch["y"], batch["patch"], strict=True):
        np.testing.assert_array_equal(
            patch, openslide_pixels(handle, Point(int(x), int(y)), 0, Size(256, 256))
        )


@needs_shared_data
@pytest.mark.parametrize("name", ["OS-1-detail.ome.tif", "OS-2-ndpi.ome.tif"])
def test_real_ome(name: str) -> None:
    folder = shared_data()
    assert folder is not None
    with (
        open_slide(str(folder / "wsi" / name)) as slide,
        tifffile.TiffFile(folder / "wsi" / name) as tiff,
    ):
        levels = tiff.series[0].levels
        assert [level.size.shape for level in slide.levels] == [level.shape[:2] for level in levels]
        for level, theirs in zip(slide.levels, levels, strict=True):
            ours = slide.read_region(Point(0, 0), level.index, level.size)
            assert (
                np.abs(ours.astype(int) - theirs.asarray()).mean() < 0.5
            )  # tifffile upsamples chroma in another way


@needs_shared_data
@pytest.mark.parametrize("name", ["gcp_camelyon_multiframe_jpeg.dcm", "cytomine_wsi"])
def test_real_dicom(name: str) -> None:
    folder = shared_data()
    assert folder is not None
    path = folder / "dicom" / name
    with open_slide(str(path)) as slide, wsidicom.WsiDicom.open(path) as series:
        assert isinstance(slide, TiledSlide)
        for level, their in zip(slide.levels, series.levels, strict=True):
            theirs = series.read_region(
                (0, 0), their.level, (level.size.width, level.size.height)
            ).convert("RGB")
            np.testing.assert_array_equal(
                slide.read_region(Point(0, 0), level.index, level.size), np.asarray(theirs)
            )


@needs_shared_data
def test_real_ndpi_is_openslides() -> None:
    folder = shared_data()
    assert folder is not None
    path = folder / "wsi" / "hamamatsu_test3-DAPI-2-387.ndpi"
    with open_slide(str(path)) as slide, openslide.OpenSlide(path) as handle:
        assert not isinstance(slide, TiledSlide)
        for level in slide.levels:
            ours = slide.read_region(Point(0, 0), level.index, Size(300, 300))
            np.testing.assert_array_equal(
                ours, openslide_pixels(handle, Point(0, 0), level.index, Size(300, 300))
            )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_in_the_table(name: str) -> None:
    """Discovery, upload and de-identification know no format but by the table."""
    made = FORMATS[name]
    read = "in place" if made.direct else "openslide"
    rows = [row for row in formats.FORMATS if (row.vendor, row.read) == (made.vendor, read)]
    assert rows
    suffix = Path(made.file).suffix
    assert any(suffix in row.suffixes if suffix else row.files == "folder" for row in rows)


def test_discovery_finds_what_is_read_and_upload_takes_what_can_be_cleaned() -> None:
    assert {".svs", ".tiff", ".mrxs", ".svslide"} <= discovery.SUFFIXES
    assert frozenset({".dcm", ".dicom"}) == discovery.DICOM_SUFFIXES
    big_tiff = {".btf", ".tf2", ".tf8"}
    assert frozenset({".svs", ".tif", ".tiff", ".ndpi", *big_tiff}) == reception.SUFFIXES
    assert not discovery.SUFFIXES & formats.NOT_READ.keys()


def test_the_readme_names_every_format() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    names = ("SVS", "OME-TIFF", "tiled TIFF", "Philips", "DICOM", "NDPI", "MIRAX", "SCN", "BIF")
    assert all(name in readme for name in names)
    assert all(any(name in row.name for row in formats.FORMATS) for name in names)


def test_the_scanned_area_of_a_mirax_slide_is_reported(tmp_path: Path) -> None:
    """QuPath crops to it, and exports annotations relative to its corner."""
    area = Rectangle(Point(128, 256), Size(384, 256))
    vendor_slides.write_mirax(tmp_path / "part.mrxs", picture(), scanned=area)
    vendor_slides.write_mirax(tmp_path / "whole.mrxs", picture())
    with open_slide(str(tmp_path / "part.mrxs")) as slide:
        assert slide.bounds == area
        outside = slide.read_region(Point(0, 0), 0, Size(128, 128))
        assert (outside == 255).all()
    with open_slide(str(tmp_path / "whole.mrxs")) as slide:
        assert slide.bounds is None


@pytest.mark.parametrize("lost", ["Data0000.dat", "Index.dat", "Slidedat.ini", "folder"])
def test_a_mirax_slide_without_all_its_files(lost: str, tmp_path: Path) -> None:
    """The cause names no path: those of the folders may hold a patient's name."""
    folder = tmp_path / "Doe^Jane"
    folder.mkdir()
    vendor_slides.write_mirax(folder / "Doe^Jane.mrxs", picture())
    if lost == "folder":
        shutil.rmtree(folder / "Doe^Jane")
    else:
        (folder / "Doe^Jane" / lost).unlink()
    with pytest.raises((BrokenSlide, UnsupportedSlide)) as caught:
        open_slide(str(folder / "Doe^Jane.mrxs"))
    error = caught.value.of_slide("slide.mrxs")
    assert "Doe" not in error.sentence
    assert re.search(r"Couldn't open \.\.\./|lacks the files that belong to it", error.cause)


def test_a_czi_goes_to_openslide_which_knows_the_format(tmp_path: Path) -> None:
    """A damaged one is broken; what nobody knows would be unsupported."""
    header = b"ZISRAWFILE".ljust(16, b"\0") + struct.pack("<qq", 512, 512) + bytes(512)
    (tmp_path / "a.czi").write_bytes(header)
    assert discovery.discover(str(tmp_path)).slides == (storage.as_uri(tmp_path / "a.czi"),)
    with pytest.raises(BrokenSlide, match=r"a\.czi can't be opened"):
        open_slide(str(tmp_path / "a.czi"))
