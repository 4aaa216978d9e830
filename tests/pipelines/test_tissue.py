"""The tissue mask on drawn biopsies with known tissue, and on real slides."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.glass import glass_colour
from pipelines.slides.errors import NoTissue
from pipelines.slides.opening import open_slide
from pipelines.tissue import tissue_mask
from tests.support.shared_data import needs_shared_data, shared_data
from tests.support.thumbnails import INK, SIDE, THUMBNAIL_MPP, cores, iou, line

CLEAR, YELLOWISH = (243.0, 243.0, 243.0), (225.0, 215.0, 190.0)


@pytest.mark.parametrize(
    ("width_um", "depth", "glass", "min_iou"),
    [
        (300, 1.0, CLEAR, 0.84),  # one pixel along each rim is 0.13 of so thin a core
        (600, 1.0, CLEAR, 0.90),
        (1000, 1.0, CLEAR, 0.93),
        (600, 1.0, YELLOWISH, 0.90),
        (300, 0.35, CLEAR, 0.87),
        (600, 0.35, YELLOWISH, 0.92),
        (600, 0.2, CLEAR, 0.88),
        (1000, 0.2, YELLOWISH, 0.92),
    ],
)
def test_thin_and_pale_cores_are_found(
    width_um: float, depth: float, glass: tuple[float, float, float], min_iou: float
) -> None:
    drawn = cores(width_um=width_um, depth=depth)
    assert (
        iou(tissue_mask("a", drawn.photograph(glass=glass), mpp=THUMBNAIL_MPP), drawn.tissue)
        > min_iou
    )


def test_pale_tissue_is_kept_next_to_dark() -> None:
    """One core dark, one pale: a threshold between the two would lose the pale one."""
    dark, pale = cores(width_um=800), cores(width_um=800, depth=0.25)
    lower = np.arange(SIDE)[:, None, None] > SIDE // 2
    dark.light = np.where(lower, pale.light, dark.light)
    mask = tissue_mask("a", dark.photograph(), mpp=THUMBNAIL_MPP)
    assert iou(mask[: SIDE // 2], dark.tissue[: SIDE // 2]) > 0.9
    assert iou(mask[SIDE // 2 :], dark.tissue[SIDE // 2 :]) > 0.9


@pytest.mark.parametrize("colour", INK)
def test_ink_is_not_tissue(colour: str) -> None:
    drawn = cores(width_um=600, count=2)
    drawn.absorb("pen", line([(100, 820), (900, 900)], 40), INK[colour], soft=2)
    drawn.absorb(
        "pen", line([(300, 60), (340, 500)], 40), INK[colour], soft=2
    )  # across the first core
    mask = tissue_mask("a", drawn.photograph(), mpp=THUMBNAIL_MPP)
    assert not mask[790:].any()
    assert (mask & drawn.artefacts["pen"]).sum() < 0.02 * drawn.artefacts["pen"].sum()
    assert iou(mask, drawn.tissue & ~drawn.artefacts["pen"]) > 0.88


def test_black_borders_and_dust_are_not_tissue() -> None:
    """Most of the picture was not scanned: the rest is brightfield all the same."""
    drawn = cores(width_um=800)
    drawn.light[:, :550] = 0.0
    for x, y in ((600, 900), (700, 920), (850, 905)):
        drawn.light[y : y + 3, x : x + 3] = (0.9, 0.5, 0.7)
    mask = tissue_mask("a", drawn.photograph(), mpp=THUMBNAIL_MPP)
    truth = drawn.tissue.copy()
    truth[:, :550] = False
    assert iou(mask, truth) > 0.9
    assert not mask[880:].any()


def test_pictures_without_stained_tissue_are_refused() -> None:
    empty = cores(width_um=0.0)
    for noise in (2, 12):
        with pytest.raises(NoTissue, match="no stained tissue"):
            tissue_mask("a", empty.photograph(noise=noise), mpp=THUMBNAIL_MPP)
    empty.absorb("pen", line([(100, 300), (900, 400)], 40), INK["black"])
    with pytest.raises(NoTissue, match="no stained tissue"):
        tissue_mask("a", empty.photograph(), mpp=THUMBNAIL_MPP)
    rng = np.random.default_rng(0)
    nuclei = (rng.random((400, 400, 1)) < 0.05) * np.array([30, 60, 250])
    with pytest.raises(NoTissue, match="fluorescence"):
        tissue_mask("a", (nuclei + rng.integers(0, 12, (400, 400, 3))).astype(np.uint8), mpp=8.0)


@pytest.mark.parametrize("glass", [CLEAR, YELLOWISH, (236.0, 233.0, 237.0)])
def test_glass_is_found_next_to_tissue_and_white_fill(glass: tuple[float, float, float]) -> None:
    seen = cores(width_um=1000).photograph(glass=glass).copy()
    seen[:, :600] = 255
    found = glass_colour(seen)
    assert found is not None
    assert np.abs(np.array(found) - glass).max() <= 1.5
    assert glass_colour(np.full((100, 100, 3), (225, 180, 210), np.uint8)) is None


def test_a_picture_full_of_tissue_is_tissue() -> None:
    drawn = cores(width_um=1000)
    rows, columns = np.nonzero(drawn.tissue)
    middle = drawn.photograph()[np.median(rows[columns == 500][:40]).astype(int) - 12 :][
        :24, 400:600
    ]
    assert tissue_mask("a", np.tile(middle, (8, 1, 1)), mpp=THUMBNAIL_MPP).mean() > 0.9


@needs_shared_data
def test_real_slides_have_tissue_where_it_is() -> None:
    folder = shared_data()
    assert folder is not None
    with open_slide(str(folder / "wsi" / "CMU-1-Small-Region.svs")) as slide:
        mask = tissue_mask(
            slide.name, slide.thumbnail(1024), mpp=slide.mpp * slide.size.width / 766
        )
    assert 0.3 < mask.mean() < 0.45
    assert not mask[640:, :80].any()  # glass
    prostate = np.asarray(
        Image.open(folder / "histoqc" / "TCGA-EJ-5509_prostate_thumb_small.png").convert("RGB")
    )
    mask = tissue_mask("a", prostate, mpp=8.0)
    assert mask[:, 350:].mean() > 0.97  # tissue to the right of the capsule, glass to the left
    assert not mask[200:, :50].any()
    for number in range(1, 5):
        tile = np.asarray(Image.open(folder / "histoqc" / f"template{number}.png").convert("RGB"))
        assert tissue_mask("a", tile, mpp=2.0).mean() > 0.95


@pytest.mark.parametrize(
    ("stain", "cause"),
    [
        ((0.65, 0.70, 0.29), None),  # haematoxylin
        ((0.27, 0.57, 0.78), r"\d\d% brown or yellow, as in immunohistochemistry"),
        ((0.60, 0.45, 0.40), r"of what is seen on it, \d+% blue or green"),
    ],
)
def test_a_stain_that_is_not_he_is_named(
    stain: tuple[float, float, float], cause: str | None
) -> None:
    """DAB (Ruifrok and Johnston 2001) and a blue dye, drawn as cores."""
    drawn = cores(width_um=800)
    depth = -np.log(np.maximum(drawn.light[drawn.tissue], 0.05)).mean(axis=1, keepdims=True)
    drawn.light[drawn.tissue] = np.exp(-2 * depth * np.array(stain))
    if cause is None:
        assert tissue_mask("a", drawn.photograph(), mpp=THUMBNAIL_MPP).any()
        return
    with pytest.raises(NoTissue, match=cause) as raised:
        tissue_mask("a", drawn.photograph(), mpp=THUMBNAIL_MPP)
    assert raised.value.code == "not-he"


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("hamamatsu_test3-DAPI-2-387.ndpi", "fluorescence"),
        ("OS-2-ndpi.ome.tif", r"not with H&E: .* 21% brown or yellow, as in immunohistochemistry"),
    ],
)
def test_real_slides_that_are_not_stained_with_he_are_refused(name: str, cause: str) -> None:
    """Fluorescence, and nuclei in blue and brown without eosin."""
    folder = shared_data()
    assert folder is not None
    with (
        open_slide(str(folder / "wsi" / name), mpp=0.5) as slide,
        pytest.raises(NoTissue, match=cause),
    ):
        tissue_mask(slide.name, slide.thumbnail(1024), mpp=1.0)
