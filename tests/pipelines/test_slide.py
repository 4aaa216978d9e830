"""The direct reader against OpenSlide, pixel for pixel; DICOM against the SVS it was made from; bad
files."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipelines.slides import codecs
from pipelines.slides import slide as slide_module
from pipelines.slides.errors import (
    BrokenSlide,
    ImplausibleResolution,
    MissingResolution,
    SlideError,
    SlideNotFound,
    UnsupportedSlide,
)
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.opening import READERS, open_slide
from pipelines.slides.slide import Slide
from pipelines.slides.tiled import TiledSlide
from pipelines.synthetic.svs import SvsMetadata, write_svs
from pipelines.synthetic.tissue import generate_tile
from tests.support.shared_data import needs_shared_data, shared_data


def openslide_pixels(
    handle: openslide.OpenSlide, origin: Point, level: int, size: Size
) -> NDArray[np.uint8]:
    """OpenSlide's region over white."""
    region = handle.read_region((origin.x, origin.y), level, (size.width, size.height))
    white = Image.new("RGB", region.size, (255, 255, 255))
    white.paste(region, mask=region.getchannel("A"))
    return np.asarray(white)


@pytest.fixture(scope="module")
def odd_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose sides are not multiples of its 240-px tiles."""
    path = tmp_path_factory.mktemp("odd") / "odd.svs"
    tissue = np.concatenate(
        [
            generate_tile(name, np.random.default_rng(3), side=800)
            for name in ("benign", "gleason_3", "gleason_4")
        ]
    )
    write_svs(path, np.tile(tissue, (1, 3, 1))[:2301, :2177], SvsMetadata(mpp=0.25, tile=240))
    return path


@pytest.fixture(scope="module", params=["generated", "odd", "real"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Slide, openslide.OpenSlide]]:
    """The same slide in both readers."""
    if request.param == "real":
        folder = shared_data()
        if folder is None:
            pytest.skip(
                "real slides are absent: set ACINUS_SHARED_DATA; the generated equivalent ran "
                "instead"
            )
        path = folder / "wsi" / "CMU-1-Small-Region.svs"
    else:
        path = request.getfixturevalue(
            {"generated": "generated_slide", "odd": "odd_tiles"}[request.param]
        )
    with open_slide(str(path)) as slide, openslide.OpenSlide(path) as handle:
        assert isinstance(slide, TiledSlide)
        yield slide, handle


def test_levels_and_resolution_are_openslides(pair: tuple[Slide, openslide.OpenSlide]) -> None:
    slide, handle = pair
    sizes = [(level.size.width, level.size.height) for level in slide.levels]
    assert sizes == list(handle.level_dimensions)[: len(sizes)]
    assert [level.downsample for level in slide.levels] == pytest.approx(
        list(handle.level_downsamples), rel=1e-6
    )
    assert slide.mpp == pytest.approx(float(handle.properties["openslide.mpp-x"]))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_pixels_are_openslides(
    pair: tuple[Slide, openslide.OpenSlide], data: st.DataObject
) -> None:
    """Any offset, size and level, over the edges too, where a pixel of the level begins.

    There both readers mean the same.
    """
    slide, handle = pair
    level = data.draw(st.sampled_from(slide.levels))
    x = data.draw(st.integers(-300, level.size.width + 50))
    y = data.draw(st.integers(-300, level.size.height + 50))
    size = Size(data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600)))
    if level.index:
        x, y = max(x, 0), max(y, 0)
    origin = Point(round(x * level.downsample), round(y * level.downsample))
    exact = (
        abs(origin.x / level.downsample - x) < 1e-9 and abs(origin.y / level.downsample - y) < 1e-9
    )
    ours = slide.read_region(origin, level.index, size)
    assert ours.shape == (*size.shape, 3)
    if exact:
        theirs = openslide_pixels(handle, origin, level.index, size)
        np.testing.assert_array_equal(ours, theirs)


def test_every_edge_tile(pair: tuple[Slide, openslide.OpenSlide]) -> None:
    slide, handle = pair
    size = slide.size
    origin = Point(size.width - 500, size.height - 500)
    np.testing.assert_array_equal(
        slide.read_region(origin, 0, Size(600, 600)),
        openslide_pixels(handle, origin, 0, Size(600, 600)),
    )


def test_identity_follows_content_and_version(generated_slide: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.svs"
    copy.write_bytes(generated_slide.read_bytes())
    first = open_slide(str(copy)).identity
    assert open_slide(copy.as_uri()).identity == first
    assert len(first) == 32
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert open_slide(str(copy)).identity != first


def test_mpp_is_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "no-mpp.svs"
    write_svs(path, generate_tile("benign", np.random.default_rng(0)), SvsMetadata(mpp=None))
    with pytest.raises(MissingResolution, match="give its mpp"):
        _ = open_slide(str(path)).mpp
    assert open_slide(str(path), mpp=0.3).mpp == 0.3
    with pytest.raises(ImplausibleResolution, match="outside"):
        open_slide(str(path), mpp=300)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.9, 0.999])
def test_truncated_slide_is_one_clear_error(
    generated_slide: Path, tmp_path: Path, share: float
) -> None:
    path = tmp_path / "cut.svs"
    content = generated_slide.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SlideError, match=r"cut\.svs") as caught:
        open_slide(str(path)).thumbnail(300)
    assert isinstance(caught.value, BrokenSlide | UnsupportedSlide)
    assert caught.value.remedy in caught.value.sentence


def test_damaged_tile_is_loud(generated_slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.svs"
    content = bytearray(generated_slide.read_bytes())
    with tifffile.TiffFile(generated_slide) as tiff:
        page = tiff.pages[0]
        offset, length = page.dataoffsets[30], page.databytecounts[30]
    content[offset + length // 2 : offset + length] = b"\0" * (length - length // 2)
    path.write_bytes(content)
    with (
        open_slide(str(path)) as slide,
        pytest.raises(BrokenSlide, match=r"tile that can't be decoded \(number 30"),
    ):
        slide.read_region(Point(0, 0), 0, slide.size)


def test_absent_text_and_grey_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFound):
        open_slide(str(tmp_path / "absent.svs"))
    text = tmp_path / "notes.svs"
    text.write_text("not a slide " * 40)
    with pytest.raises(UnsupportedSlide):
        open_slide(str(text))
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(
        grey, np.zeros((600, 600), np.uint16), tile=(256, 256), photometric="minisblack"
    )
    with pytest.raises(UnsupportedSlide, match="greyscale"):
        open_slide(str(grey))


def test_a_closed_slide_is_not_read(generated_slide: Path) -> None:
    with open_slide(str(generated_slide)) as slide:
        slide.read_region(Point(0, 0), 0, Size(8, 8))
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read_region(Point(0, 0), 0, Size(8, 8))


@pytest.mark.parametrize("name", ["svs-jpeg", "ndpi", "dicom-jpeg"])
def test_levels_count_from_zero(name: str, small_slide: Callable[[str], Path]) -> None:
    """-1 is not the last one."""
    with open_slide(str(small_slide(name))) as slide:
        for level in (-1, len(slide.levels)):
            with pytest.raises(ValueError, match=f"has levels 0 to .*, not {level}"):
                slide.read_region(Point(0, 0), level, Size(8, 8))
        with pytest.raises(ValueError, match="can't be shrunk by 3"):
            slide.read_region(Point(0, 0), 0, Size(8, 8), scale=3)


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("", "is an empty path"),
        ("  ", "is an empty path"),
        ("a\0.svs", "is not a path"),
        ("ftp://host/a.svs", "is not a path or URI that can be read"),
        ("http://host/a.svs", "is not a path or URI that can be read"),
        ("file://host/a.svs", "is not a path or URI that can be read"),
        ("s3:///a.svs", "is not a path or URI that can be read"),
        ("s3://", "no DICOM|not a path"),
        ("x" * 300 + ".svs", "may not be read|can't be|is not"),
        ("/dev/zero", "is not a file"),
    ],
)
def test_a_path_that_names_no_slide_is_refused(path: str, cause: str) -> None:
    """An empty path is not the working directory."""
    with pytest.raises(SlideNotFound, match=cause):
        open_slide(path)


@pytest.mark.parametrize("kind", ["pipe", "loop", "dangling"])
def test_pipes_and_broken_links_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else "nowhere")
    with pytest.raises(SlideNotFound, match=r"slide\.svs "):
        open_slide(str(path))


def test_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "slide.vsi"
    tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), tile=(128, 128), photometric="rgb")
    with pytest.raises(UnsupportedSlide, match="is Olympus VSI, which is not read; export it"):
        open_slide(str(path))


def test_errors_survive_pickling_with_code_and_facts() -> None:
    error = UnsupportedSlide("a.svs", "is odd", "export it", code="odd", facts={"value": 3})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnsupportedSlide
    assert (str(again), again.sentence) == (str(error), error.sentence)
    assert (again.code, again.facts) == ("odd", {"value": 3})
    renamed = error.of_slide("slide.svs")
    assert (renamed.slide, renamed.cause, renamed.code) == ("slide.svs", "is odd", "odd")


def test_remedies_name_no_option_and_every_class_has_a_code() -> None:
    error = MissingResolution.of("a.svs")
    assert error.code == "missing-mpp"
    assert "--" not in str(error)
    kinds = SlideError.__subclasses__()
    assert len({kind.default_code for kind in kinds} | {SlideError.default_code}) == len(kinds) + 1


@needs_shared_data
def test_dicom_shows_what_the_svs_shows() -> None:
    folder = shared_data()
    assert folder is not None
    with (
        open_slide(str(folder / "dicom" / "cytomine_wsi")) as dicom,
        open_slide(str(folder / "wsi" / "CMU-1-Small-Region.svs")) as svs,
    ):
        assert (dicom.size, dicom.mpp, dicom.vendor) == (svs.size, svs.mpp, "dicom")
        ours, theirs = (
            slide.read_region(Point(300, 700), 0, Size(500, 500)).astype(int)
            for slide in (dicom, svs)
        )
        # The set was compressed anew from the SVS, so pixels are near, not equal.
        assert np.abs(ours - theirs).mean() < 6


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("odd/unreadable.svs", BrokenSlide),
        ("odd/histolab_broken.svs", UnsupportedSlide),
        ("dicom/highdicom_seg_image_sm_control.dcm", UnsupportedSlide),
        ("dicom/highdicom_sm_annotations.dcm", UnsupportedSlide),
        ("dicom/gcp_wsi_annotation.dcm", UnsupportedSlide),
    ],
)
def test_real_odd_files(name: str, kind: type[SlideError]) -> None:
    folder = shared_data()
    assert folder is not None
    with pytest.raises(kind):
        open_slide(str(folder / name)).thumbnail(100)


def test_a_level_too_large_for_memory_gives_the_same_thumbnail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bands it is the same area average.

    Shrunk while decoding, it differs by what DCT scaling differs.
    """
    path = tmp_path / "one-level.svs"
    write_svs(
        path,
        generate_tile("gleason_4", np.random.default_rng(5), side=1400)[:1280, :1216],
        SvsMetadata(mpp=0.25),
    )
    with open_slide(str(path)) as slide:
        assert len(slide.levels) == 1
        side = 160  # 1/8: what is left to resample after scaling is nothing
        whole = slide.thumbnail(side).astype(int)
        monkeypatch.setattr(slide_module, "WINDOW_PIXELS", 300_000)
        shrunk = slide.thumbnail(side).astype(int)
        monkeypatch.setattr(type(slide), "scales", lambda _slide, _level: (1,))
        banded, odd = slide.thumbnail(side).astype(int), slide.thumbnail(147).astype(int)
        monkeypatch.undo()
        np.testing.assert_allclose(odd, slide.thumbnail(147).astype(int), atol=1)
    np.testing.assert_allclose(banded, whole, atol=1)
    assert np.abs(shrunk - whole).mean() < 1.0


class Plain(Slide):
    """A slide of one level; remembers the sizes that were read.

    Args:
        size: of the level.
        pixels: of the level, uint8 [H, W, 3]; black where None.
        scales: by what it can be shrunk.
    """

    def __init__(
        self, size: Size, pixels: NDArray[np.uint8] | None = None, scales: tuple[int, ...] = (1,)
    ) -> None:
        self.name, self.levels = "plain", (Level(index=0, size=size, downsample=1.0),)
        self._pixels, self._scales, self.reads = pixels, scales, list[Size]()

    def _read(
        self, origins: Sequence[Point], level: int, size: Size, scale: int
    ) -> NDArray[np.uint8]:
        self.reads.append(size)
        if self._pixels is None:
            return np.broadcast_to(np.uint8(0), (1, *size.shape, 3))
        (origin,) = origins
        found = self._pixels[origin.y : origin.y + size.height, origin.x : origin.x + size.width]
        assert found.shape[:2] == size.shape
        return found[None]

    def scales(self, level: int) -> tuple[int, ...]:
        return self._scales

    def _release(self) -> None:
        """Nothing is open."""


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    max_side=st.integers(1, 300),
    window=st.sampled_from([900, 4096]),
)
def test_thumbnails_take_bounded_memory(
    width: int, height: int, max_side: int, window: int
) -> None:
    """Whatever the shape: no read is much larger than a window, and all together are the average of
    the whole."""
    ramps = np.meshgrid(np.arange(width) / 3, np.arange(height) / 3)
    pixels = np.stack([*ramps, ramps[0] / 2], axis=2).astype(np.uint8)
    slide = Plain(Size(width, height), pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slide_module, "WINDOW_PIXELS", window)
        ours = slide.thumbnail(max_side)
    assert max(ours.shape[:2]) == min(max(width, height), max_side)
    whole = Image.fromarray(pixels).resize((ours.shape[1], ours.shape[0]), Image.Resampling.BOX)
    np.testing.assert_allclose(ours.astype(int), np.asarray(whole).astype(int), atol=1)
    if max_side < max(width, height):
        margin = 4  # rows and columns that the filter and its rounding add
        most = max(size.width - margin for size in slide.reads) * max(
            size.height - margin for size in slide.reads
        )
        assert most <= 2.5 * window


def test_a_tile_is_decoded_few_times_for_a_thumbnail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a window holds no whole row of tiles."""
    path = tmp_path / "wide.tif"
    tifffile.imwrite(
        path,
        np.zeros((512, 4096, 3), np.uint8),
        tile=(64, 64),
        photometric="rgb",
        compression="zlib",
    )
    decoded = []

    def decode(codec: str, stream: codecs.Buffer, *, out: NDArray[np.uint8]) -> None:
        decoded.append(codec)
        out[:] = 0

    monkeypatch.setattr(slide_module, "WINDOW_PIXELS", 2**16)
    monkeypatch.setattr(codecs, "decode", decode)
    with open_slide(str(path)) as slide:
        slide.thumbnail(512)
    assert 512 <= len(decoded) <= 3 * 512


def test_the_largest_slides_of_one_level_have_a_thumbnail() -> None:
    """JPEG of 8 GB; a whole glass; not a decompression bomb."""
    for size in (Size(100_000, 100_000), Size(304_000, 104_000)):
        slide = Plain(size, scales=(8, 4, 2, 1))
        assert max(slide.thumbnail(1024).shape) == 1024
        assert (
            max(8 * read.width * read.height for read in slide.reads)
            <= 2 * slide_module.WINDOW_PIXELS
        )
    slide = Plain(Size(2**20, 2**20))
    with pytest.raises(
        BrokenSlide, match=r"plain has no level for an overview .* export it with all levels"
    ):
        slide.thumbnail(1024)
    assert not slide.reads


def test_a_tiff_loads_no_reader_but_its_own(generated_slide: Path) -> None:
    """DICOM's libraries need a second to be imported."""
    code = (
        "import sys; from pipelines.slides.opening import open_slide;"
        f"open_slide({str(generated_slide)!r}).thumbnail(64);"
        "print([name for name in ('wsidicom', 'pydicom', 'openslide') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", READERS)
def test_every_reader_can_be_loaded(name: str) -> None:
    assert importlib.import_module(READERS[name])
