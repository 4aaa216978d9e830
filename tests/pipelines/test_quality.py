"""Artefacts on drawn thumbnails with known masks and on real ones; focus, blank, saturation and ink
of patches; the verdict."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipelines import addresses, storage
from pipelines.fingerprint import Fingerprint
from pipelines.grid import PatchSpec
from pipelines.index import index_slide, write_index
from pipelines.overview import BUBBLE, COVER, EDGE, PATCH, PEN, TISSUE
from pipelines.quality import (
    Artefacts,
    PatchQuality,
    SlideQuality,
    artefacts,
    assess,
    patch_quality,
)
from pipelines.slides.opening import open_slide
from pipelines.synthetic.svs import SvsMetadata, write_svs
from pipelines.synthetic.tissue import generate_tile
from pipelines.tissue import tissue_mask
from tests.support.shared_data import needs_shared_data, shared_data
from tests.support.thumbnails import INK, SIDE, THUMBNAIL_MPP, Drawn, cores, disc, iou, line

RIM = (0.35, 0.35, 0.35)


def bubble(drawn: Drawn, x: int, y: int, radius: int) -> None:
    """A dark rim; the truth is the disc."""
    drawn.absorb("rim", disc(x, y, radius) & ~disc(x, y, radius - 3), RIM)
    drawn.artefacts["bubble"] = drawn.artefacts.get("bubble", np.zeros((SIDE, SIDE), bool)) | disc(
        x, y, radius
    )


@pytest.mark.parametrize("colour", INK)
def test_pen_marks_are_found(colour: str) -> None:
    drawn = cores(width_um=700)
    drawn.absorb("pen", line([(60, 150), (400, 60), (700, 300)], 40), INK[colour], soft=2)
    found = artefacts(drawn.photograph(), mpp=THUMBNAIL_MPP)
    assert iou(found.pen, drawn.artefacts["pen"]) > 0.85
    assert not (found.edge | found.bubble | found.void).any()


def test_a_stroke_that_runs_dry_is_found_to_its_end() -> None:
    drawn = cores(width_um=700)
    drawn.absorb("wet", line([(100, 900), (500, 900)], 30), INK["green"])
    drawn.absorb("dry", line([(500, 900), (850, 900)], 30), (0.82, 0.95, 0.92))
    assert artefacts(drawn.photograph(), mpp=THUMBNAIL_MPP).pen[900, 110:840].mean() > 0.95


def test_coverslip_edges_and_bubbles_are_distinguished() -> None:
    drawn = cores(width_um=700)
    drawn.absorb("edge", line([(880, 0), (905, 500), (890, 999)], 8), (0.3, 0.3, 0.3))
    bubble(drawn, 760, 820, 60)
    bubble(drawn, 300, 860, 35)
    bubble(drawn, 420, 500, 40)  # over a core
    found = artefacts(drawn.photograph(), mpp=THUMBNAIL_MPP)
    assert iou(found.edge, drawn.artefacts["edge"]) > 0.75
    assert iou(found.bubble, drawn.artefacts["bubble"]) > 0.9
    assert not found.pen.any()


def test_clean_slides_have_no_artefacts() -> None:
    """Tissue deep and pale, dust, a hair that is short, and a smear: none is an artefact."""
    for depth in (0.3, 1.0, 1.8):
        drawn = cores(width_um=1000, depth=depth)
        drawn.absorb("hair", line([(500, 850), (580, 900)], 3), (0.4, 0.4, 0.4))
        drawn.absorb("smear", disc(200, 900, 60), (0.9, 0.9, 0.9), soft=9)
        found = artefacts(drawn.photograph(), mpp=THUMBNAIL_MPP)
        assert found.mask.mean() < 1e-4


def test_areas_that_were_not_scanned_are_void() -> None:
    drawn = cores(width_um=700)
    drawn.light[:, :200] = 0
    seen = drawn.photograph(noise=0)
    found = artefacts(seen, mpp=THUMBNAIL_MPP)
    assert found.void[:, :195].all()
    assert not found.void[:, 210:].any()


@needs_shared_data
@pytest.mark.parametrize(
    ("picture", "kind", "min_iou"),
    [
        ("pen_black", "pen", 0.85),
        ("pen_green", "pen", 0.75),
        ("pen_red", "pen", 0.75),
        ("coverslip_edge_he", "edge", 0.65),
    ],
)
def test_real_artefacts_are_found_as_a_person_drew_them(
    picture: str, kind: str, min_iou: float
) -> None:
    folder = shared_data()
    assert folder is not None
    seen = np.asarray(Image.open(folder / "histoqc" / f"{picture}.png").convert("RGB"))
    truth = np.asarray(Image.open(folder / "histoqc" / f"{picture}_mask.png").convert("L")) > 127
    assert iou(getattr(artefacts(seen, mpp=20.0), kind), truth) > min_iou


@needs_shared_data
def test_real_tissue_has_no_artefacts() -> None:
    """160 prostate tiles and four more of H&E, side by side at a thumbnail's scale."""
    folder = shared_data()
    assert folder is not None
    tiles = sorted((folder / "tiles" / "gleason_arvaniti").rglob("*.jpg"))
    small = [
        np.asarray(Image.open(tile).convert("RGB").resize((24, 24), Image.Resampling.BOX))
        for tile in tiles
    ]
    rows = [np.concatenate(small[k : k + 16], axis=1) for k in range(0, 160, 16)]
    others = [
        np.asarray(Image.open(folder / "histoqc" / f"template{k}.png").convert("RGB"))
        for k in range(1, 5)
    ]
    for seen, mpp in [(np.concatenate(rows), 7.0), *((other, 10.0) for other in others)]:
        assert artefacts(seen, mpp=mpp).mask.mean() < 1e-3


def blurred(patches: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return np.stack(
        [
            np.asarray(Image.fromarray(patch).filter(ImageFilter.GaussianBlur(sigma)))
            for patch in patches
        ]
    )


def check_focus(patches: NDArray[np.uint8]) -> None:
    """Sharp patches pass, deep or pale; out of focus they don't."""
    pale = np.rint(243 - (243 - patches.astype(float)) * 0.35).astype(np.uint8)
    assert patch_quality(patches).blurred.mean() < 0.03
    assert patch_quality(pale).blurred.mean() < 0.05
    assert patch_quality(blurred(patches, 2.5)).blurred.mean() > 0.95
    ranks = [patch_quality(blurred(patches, sigma)).focus.mean() for sigma in (0.5, 1.0, 2.0, 4.0)]
    assert ranks == sorted(ranks, reverse=True)


def test_blur_is_seen_in_generated_patches() -> None:
    rng = np.random.default_rng(4)
    tiles = [
        generate_tile(name, rng, side=448)
        for name in ("benign", "gleason_3", "gleason_4", "gleason_5")
    ]
    check_focus(
        np.stack(
            [tile[y : y + 224, x : x + 224] for tile in tiles for y in (0, 224) for x in (0, 224)]
        )
    )


@needs_shared_data
def test_blur_is_seen_in_real_patches() -> None:
    folder = shared_data()
    assert folder is not None
    tiles = sorted((folder / "tiles" / "gleason_arvaniti").rglob("*.jpg"))[::2]
    half = [
        Image.open(tile)
        .convert("RGB")
        .resize((345, 345), Image.Resampling.BOX)
        .crop((0, 0, 224, 224))
        for tile in tiles
    ]
    check_focus(np.stack([np.asarray(image) for image in half]))


def test_blank_burnt_out_and_inked_patches_are_measured() -> None:
    patch = generate_tile("gleason_4", np.random.default_rng(4), side=224)
    half, burnt, inked = patch.copy(), patch.copy(), patch.copy()
    half[:112] = 242
    burnt[:, :56] = 255
    inked[56:112] = inked[56:112] * np.array(INK["green"])
    empty = np.full_like(patch, 242)
    found = patch_quality(np.stack([patch, half, burnt, inked, empty]), glass=(242.0, 242.0, 242.0))
    np.testing.assert_allclose(found.saturated, [0, 0, 0.25, 0, 0], atol=0.01)
    assert found.blank[1] - found.blank[0] / 2 == pytest.approx(0.5, abs=0.03)
    assert found.blank[4] == 1.0
    np.testing.assert_allclose(found.pen, [0, 0, 0, 0.25, 0], atol=0.02)
    assert not found.blurred[4]  # glass has nothing to be sharp


def no_patches() -> PatchQuality:
    return patch_quality(np.empty((0, 64, 64, 3), np.uint8))


def judged(drawn: Drawn, patches: PatchQuality) -> SlideQuality:
    seen = drawn.photograph()
    found = artefacts(seen, mpp=THUMBNAIL_MPP)
    return assess(
        tissue_mask("a", seen, mpp=THUMBNAIL_MPP, found=found), found, patches, mpp=THUMBNAIL_MPP
    )


def test_the_verdict_says_why() -> None:
    clean = judged(cores(width_um=800), no_patches())
    assert (clean.verdict, clean.sentences) == ("good", ())
    inked = cores(width_um=800)
    for x in (200, 400, 600):
        inked.absorb("pen", line([(x, 0), (x, 999)], 80), INK["green"])
    found = judged(inked, no_patches())
    truth = (inked.artefacts["pen"] & inked.tissue).sum() / inked.tissue.sum()
    assert found.pen == pytest.approx(truth, abs=0.05)
    assert found.verdict == "limited"
    assert found.sentences == (f"Pen marks hide {found.pen:.0%} of the tissue.",)
    next_to_tissue = cores(width_um=800, count=2)
    next_to_tissue.absorb("pen", line([(100, 820), (900, 900)], 40), INK["green"])
    assert judged(next_to_tissue, no_patches()).pen < 0.02  # ink that hides no tissue
    sharp = np.stack(
        [generate_tile("gleason_4", np.random.default_rng(k), side=224) for k in range(4)]
    )
    soft = judged(cores(width_um=800), patch_quality(blurred(sharp, 4)))
    assert (soft.verdict, soft.blurred) == ("poor", 1.0)
    assert soft.sentences == ("100% of the sampled patches are out of focus.",)
    small = cores(width_um=60, count=1)
    small.light[:, 250:] = 1
    assert judged(small, no_patches()).sentences[-1].startswith("There are only 0.")


def test_quality_survives_json() -> None:
    quality = judged(cores(width_um=800), no_patches())
    assert SlideQuality.from_dict(json.loads(json.dumps(quality.to_dict()))) == quality


@pytest.fixture(scope="module")
def inked_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.75 x 1.5 mm of tissue at 0.5 um a pixel, a third below green ink."""
    rng = np.random.default_rng(3)
    core = np.tile(generate_tile("gleason_4", rng, side=750), (2, 4, 1))
    pixels = np.full((2100, 3600, 3), 243, np.uint8)
    pixels[300:1800, 300:3300] = core
    pixels[:, 1200:2200] = pixels[:, 1200:2200] * np.array(INK["green"])
    path = tmp_path_factory.mktemp("inked") / "inked.svs"
    write_svs(path, pixels, SvsMetadata(mpp=0.5))
    return path


def test_no_patch_is_placed_on_ink(inked_slide: Path, tmp_path: Path) -> None:
    spec = PatchSpec(size=112, mpp=1.0)
    written = []
    for name in ("one", "two"):
        with open_slide(str(inked_slide)) as slide:
            indexed = index_slide(slide, spec, organisation="org")
        write_index(indexed, str(tmp_path / name), organisation="org", spec=spec)
        written.append(
            {
                path.name: path.read_bytes()
                for path in (tmp_path / name).rglob("*")
                if path.is_file()
            }
        )
    assert written[0] == written[1]
    assert set(written[0]) == {"shards.parquet", "quality.json", "fingerprint.json", "overview.png"}
    left = np.concatenate([np.array(x) for x in indexed.shards["x"].to_pylist()])
    overlap = np.minimum(left + 224, 2200) - np.maximum(
        left, 1200
    )  # the lattice has columns with 0.64 and 0.82 of a patch on ink
    assert indexed.record.n_patches > 40
    assert (overlap < 0.3 * 224).all()
    assert indexed.quality.pen == pytest.approx(1 / 3, abs=0.04)
    assert indexed.quality.verdict == "limited"
    address = addresses.quality("org", indexed.record.slide_id, spec.hash)
    stored = json.loads(
        storage.read_bytes(storage.join(str(tmp_path / "one"), *address.split("/")))
    )
    assert SlideQuality.from_dict(stored) == indexed.quality
    stored = json.loads(
        storage.read_bytes(
            storage.join(str(tmp_path / "one"), *address.split("/")[:-1], "fingerprint.json")
        )
    )
    assert Fingerprint.from_dict(stored) == indexed.fingerprint


def test_the_overview_shows_artefacts_in_their_colours(inked_slide: Path) -> None:
    with open_slide(str(inked_slide)) as slide:
        indexed = index_slide(slide, PatchSpec(size=112, mpp=1.0), organisation="org")
    picture = np.asarray(Image.open(io.BytesIO(indexed.picture())))
    height, width = indexed.thumbnail.shape[:2]
    assert picture.shape[1] == width
    assert picture.shape[0] > height  # the legend
    inside = picture[height // 2, width // 2].astype(float)
    expected = (1 - COVER) * indexed.thumbnail[height // 2, width // 2] + COVER * np.array(PEN)
    np.testing.assert_allclose(inside, expected, atol=1)
    legend = picture[height:].reshape(-1, 3)
    assert [
        (legend == colour).all(axis=1).any() for colour in (TISSUE, PATCH, PEN, EDGE, BUBBLE)
    ] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_artefacts_are_one_mask() -> None:
    masks = {name: np.zeros((9, 9), bool) for name in ("pen", "faint", "edge", "bubble", "void")}
    for k, mask in enumerate(masks.values()):
        mask[k, k] = True
    found = Artefacts(glass=None, **masks)
    assert found.mask.sum() == 5
    assert found.within(1.0)[4, 5]
    assert not found.within(1.0)[5, 5]
